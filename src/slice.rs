//! Short time slices, so that on a machine which is full the bus is soon at what has come for it.
//!
//! A thread that wakes while every core is taken waits until somebody's slice ends: 2.8 ms by default on two cores.
//! Linux lets threads of the usual policy ask for slices of their own from 6.12 on (EEVDF; `sched_runtime` of
//! sched_setattr(2)). With a shorter one a thread has its turn sooner and gives it up sooner; its
//! share of the time stays the same.
//!
//! The one place with `unsafe`: neither std nor rustix has this call.
#![expect(
    unsafe_code,
    reason = "a system call that no library of ours wraps; it reads one struct"
)]

use std::io;

/// SCHED_OTHER (sched(7)).
const USUAL: u32 = 0;

/// Long enough that changing threads costs little beside it, short beside what people notice.
const NANOSECONDS: u64 = 300_000;

/// Asks for short slices for this thread and those that it starts from now on. Its niceness stays; with
/// another policy than the usual one (`chrt`) nothing changes.
///
/// # Errors
/// The system knows no such call, or a container forbids it. A Linux before 6.12 agrees and changes nothing.
pub fn ask() -> io::Result<()> {
    let mut wanted = current()?;
    if wanted.sched_policy != USUAL {
        return Ok(());
    }
    wanted.sched_runtime = NANOSECONDS;
    // SAFETY: thread 0 is this one; the struct lives through the call and says its own size.
    let result = unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const wanted, 0) };
    done(result)
}

/// How this thread is scheduled.
fn current() -> io::Result<libc::sched_attr> {
    let mut found = libc::sched_attr {
        size: size_of::<libc::sched_attr>() as u32,
        sched_policy: 0,
        sched_flags: 0,
        sched_nice: 0,
        sched_priority: 0,
        sched_runtime: 0,
        sched_deadline: 0,
        sched_period: 0,
    };
    // SAFETY: as in `ask`, and the system writes at most the size that is given.
    let result =
        unsafe { libc::syscall(libc::SYS_sched_getattr, 0, &raw mut found, found.size, 0) };
    done(result).map(|()| found)
}

fn done(result: libc::c_long) -> io::Result<()> {
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slice() -> (u64, i32) {
        let found = current().unwrap();
        (found.sched_runtime, found.sched_nice)
    }

    #[test]
    fn threads_that_are_started_afterwards_have_it_too_and_niceness_stays() {
        std::thread::spawn(|| {
            let (_, nice) = slice();
            ask().unwrap();
            let own = slice();
            assert_eq!(own, std::thread::spawn(slice).join().unwrap());
            // 0: a Linux that knows no slices of one's own.
            assert!(own == (NANOSECONDS, nice) || own == (0, nice), "{own:?}");
        })
        .join()
        .unwrap();
    }
}
