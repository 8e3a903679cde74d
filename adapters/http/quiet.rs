//! Wake-ups that are known to be of no use.
//!
//! hyper hands a body over through a channel, and taking a piece out wakes whoever feeds it. Here that is
//! the task that is just taking it: it reads bodies in its own turn, from a connection that it drives
//! itself. Left alone, each body would cost one more turn of its task in which nothing is to be done.
//!
//! A task that polls under a [`Quiet`] waker can take things within [`hold`]. What its own
//! thread wakes meanwhile is held back and told, so that whoever took something decides whether the task
//! must look again. Other threads wake it as ever.

use std::cell::Cell;
use std::sync::Arc;
use std::task::{Context, Wake, Waker};

thread_local! {
    static HELD: Cell<Held> = const { Cell::new(Held::No) };
}

#[derive(Clone, Copy)]
enum Held {
    /// Wake-ups go to their tasks.
    No,
    /// They are held back, and there was none yet.
    None,
    /// There was one.
    Some,
}

/// Does something that may wake the connection that it belongs to, and nobody else; says whether it would
/// have. Whether that matters is for the caller to decide.
pub(crate) fn hold<T>(work: impl FnOnce() -> T) -> (T, bool) {
    /// Ends it, even when the work panics.
    struct End;
    impl Drop for End {
        fn drop(&mut self) {
            HELD.set(Held::No);
        }
    }
    HELD.set(Held::None);
    let end = End;
    let done = work();
    let woken = matches!(HELD.get(), Held::Some);
    drop(end);
    (done, woken)
}

/// The waker of a task, as one that [`hold`] can hold back.
#[derive(Default)]
pub(crate) struct Quiet(Option<(Waker, Arc<Task>)>);

struct Task(Waker);

impl Quiet {
    /// The waker for this turn of the task.
    pub(crate) fn waker(&mut self, cx: &Context<'_>) -> &Waker {
        let known = |(_, task): &(Waker, Arc<Task>)| task.0.will_wake(cx.waker());
        if !self.0.as_ref().is_some_and(known) {
            self.0 = None;
        }
        let (waker, _) = self.0.get_or_insert_with(|| {
            let task = Arc::new(Task(cx.waker().clone()));
            (Waker::from(task.clone()), task)
        });
        waker
    }
}

impl Wake for Task {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        // A thread that is ending holds nothing back.
        match HELD.try_with(Cell::get) {
            Ok(Held::None | Held::Some) => HELD.set(Held::Some),
            Ok(Held::No) | Err(_) => self.0.wake_by_ref(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

    use super::*;

    #[derive(Default)]
    struct Count(AtomicUsize);

    impl Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, SeqCst);
        }
    }

    #[test]
    fn only_what_the_thread_wakes_by_what_it_takes_is_held_back() {
        let count = Arc::new(Count::default());
        let (task, mut quiet) = (Waker::from(count.clone()), Quiet::default());
        let waker = quiet.waker(&Context::from_waker(&task)).clone();
        waker.wake_by_ref();
        assert_eq!(count.0.load(SeqCst), 1);
        assert_eq!(hold(|| 7), (7, false));
        assert_eq!(hold(|| waker.wake_by_ref()), ((), true));
        assert_eq!(count.0.load(SeqCst), 1);
        let other = waker.clone();
        let from_elsewhere = || std::thread::spawn(move || other.wake()).join().unwrap();
        assert_eq!(hold(from_elsewhere), ((), false));
        assert_eq!(count.0.load(SeqCst), 2);
        let panics = std::panic::catch_unwind(|| hold(|| panic!("meant")));
        assert!(panics.is_err());
        waker.wake_by_ref();
        assert_eq!(count.0.load(SeqCst), 3);
    }

    #[test]
    fn a_task_keeps_its_waker_and_another_one_gets_its_own() {
        let (one, two) = (Arc::new(Count::default()), Arc::new(Count::default()));
        let (first, second) = (Waker::from(one.clone()), Waker::from(two.clone()));
        let mut quiet = Quiet::default();
        let waker = quiet.waker(&Context::from_waker(&first)).clone();
        assert!(quiet.waker(&Context::from_waker(&first)).will_wake(&waker));
        quiet.waker(&Context::from_waker(&second)).wake_by_ref();
        assert_eq!((one.0.load(SeqCst), two.0.load(SeqCst)), (0, 1));
    }
}
