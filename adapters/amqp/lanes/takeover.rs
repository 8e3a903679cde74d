//! Taking a queue over: before the first message of a session is tried, the other nodes are asked
//! whether they have let go of the queue.
//!
//! A broker that loses a consumer's connection gives its message to the next node at once, while the
//! attempt that is under way there goes on. Until that has ended, what is sent here could arrive
//! before it. A node that does not answer (killed, frozen, cut off) is not waited for: its own
//! connection is proven before each attempt. Absent: a lock at the broker, which would have the same
//! time limit and one more way to be lost.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::{Instant, timeout_at};

use super::nodes::Nodes;
use super::wire::Answer;

/// How often the others are asked. A node whose connection was lost hears of it when it has another.
const AGAIN: Duration = Duration::from_millis(250);
/// A node that has said nothing for so long is not waited for.
const SILENCE: Duration = Duration::from_secs(2);

/// The question to the other nodes, until each has answered or is known not to.
pub(super) struct Takeover {
    nodes: Arc<Nodes>,
    queue: Arc<str>,
    number: u64,
    answers: mpsc::UnboundedReceiver<(String, Answer)>,
    waiting: Waiting,
    next: Instant,
}

impl Takeover {
    /// Of `peers`, who answer under `number`.
    pub(super) fn new(
        nodes: Arc<Nodes>,
        queue: Arc<str>,
        peers: Vec<String>,
        number: u64,
        answers: mpsc::UnboundedReceiver<(String, Answer)>,
    ) -> Self {
        let now = Instant::now();
        Self {
            nodes,
            queue,
            number,
            answers,
            waiting: Waiting::new(peers, now),
            next: now,
        }
    }

    /// Whether nobody is waited for any more.
    pub(super) fn is_over(&mut self) -> bool {
        let up = self.nodes.up_since();
        let silent = self.waiting.give_up(Instant::now(), up);
        if !silent.is_empty() {
            tracing::info!(
                queue = %self.queue,
                nodes = silent.len(),
                "takes the lane over from a node that does not answer"
            );
            // What could not be asked may be there.
            if up.is_some() {
                self.nodes.note_silent(&silent);
            }
        }
        self.waiting.heard.is_empty()
    }

    /// Asks, when it is time to.
    pub(super) fn ask(&mut self) {
        let now = Instant::now();
        if now >= self.next {
            self.nodes.ask_to_let_go(self.number, &self.queue);
            self.next = now + AGAIN;
        }
    }

    /// Waits for an answer until it is time to ask again. Something: a node has let go, and tells.
    pub(super) async fn hear(&mut self) -> Option<Answer> {
        match timeout_at(self.next, self.answers.recv()).await {
            Ok(Some((instance, answer))) if answer.later => {
                self.waiting.busy(&instance, Instant::now());
                None
            }
            Ok(Some((instance, answer))) => self.waiting.let_go(&instance).then_some(answer),
            // Nobody will answer.
            Ok(None) => {
                self.waiting.heard.clear();
                None
            }
            Err(_) => None,
        }
    }
}

impl Drop for Takeover {
    fn drop(&mut self) {
        self.nodes.asked_enough(self.number);
    }
}

/// Who is waited for.
struct Waiting {
    began: Instant,
    /// When each was heard of last.
    heard: HashMap<String, Instant>,
}

impl Waiting {
    fn new(peers: Vec<String>, now: Instant) -> Self {
        Self {
            began: now,
            heard: peers.into_iter().map(|peer| (peer, now)).collect(),
        }
    }

    /// A node has an attempt under way.
    fn busy(&mut self, peer: &str, now: Instant) {
        if let Some(heard) = self.heard.get_mut(peer) {
            *heard = now;
        }
    }

    /// A node has none; whether it was waited for.
    fn let_go(&mut self, peer: &str) -> bool {
        self.heard.remove(peer).is_some()
    }

    /// Those that have said nothing for too long, which are not waited for any more. `up`: since when
    /// they could be asked, which is waited for as long at most.
    fn give_up(&mut self, now: Instant, up: Option<Instant>) -> Vec<String> {
        let asked = up.map_or(self.began, |up| up.min(self.began + SILENCE));
        let silent = |heard: &Instant| now.duration_since(asked.max(*heard)) >= SILENCE;
        let gone = self.heard.extract_if(|_, heard| silent(heard));
        gone.map(|(peer, _)| peer).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOMENT: Duration = Duration::from_millis(1);

    fn waiting(peers: &[&str]) -> (Waiting, Instant) {
        let now = Instant::now();
        let peers = peers.iter().map(|peer| (*peer).to_owned()).collect();
        (Waiting::new(peers, now), now)
    }

    #[test]
    fn a_node_alone_does_not_wait() {
        assert!(waiting(&[]).0.heard.is_empty());
    }

    #[test]
    fn a_node_that_has_let_go_is_not_waited_for_and_tells_once() {
        let (mut waiting, _) = waiting(&["a", "b"]);
        assert!(waiting.let_go("a"));
        assert!(!waiting.let_go("a"));
        assert!(!waiting.let_go("a stranger"));
        assert_eq!(waiting.heard.len(), 1);
    }

    #[test]
    fn a_node_that_is_busy_is_waited_for_and_one_that_is_silent_is_not() {
        let (mut waiting, start) = waiting(&["busy", "silent"]);
        let up = Some(start);
        let mut now = start;
        for _ in 0..100 {
            now += SILENCE - MOMENT;
            waiting.busy("busy", now);
            let gone = waiting.give_up(now + MOMENT, up);
            assert!(gone.iter().all(|peer| peer == "silent"), "{gone:?}");
        }
        assert_eq!(waiting.heard.len(), 1);
        assert_eq!(waiting.give_up(now + SILENCE, up), ["busy"]);
    }

    #[test]
    fn the_time_runs_from_when_it_can_be_asked_but_does_not_wait_for_that_for_long() {
        let (mut late, start) = waiting(&["a"]);
        let up = start + SILENCE - MOMENT;
        assert!(late.give_up(up + SILENCE - MOMENT, Some(up)).is_empty());
        assert_eq!(late.give_up(up + SILENCE, Some(up)), ["a"]);

        let (mut never, start) = waiting(&["a"]);
        assert!(never.give_up(start + SILENCE - MOMENT, None).is_empty());
        assert_eq!(never.give_up(start + SILENCE, None), ["a"]);

        // Lost and made again and again.
        let (mut often, start) = waiting(&["a"]);
        let now = start + 2 * SILENCE;
        assert_eq!(often.give_up(now, Some(now - MOMENT)), ["a"]);
    }
}
