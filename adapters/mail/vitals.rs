//! How a mail server is doing, as it was seen when it was last used.
//!
//! Nothing is asked for the sake of health: a server that nobody needs stays `idle`, and one that
//! worked when it was last needed counts as `up`, whether or not a connection to it stands.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use xbus_core::Timestamp;
use xbus_core::adapter::{ConnectionHealth, ConnectionPhase, ConnectionState};
use xbus_core::spec::Connection;

use crate::account::Account;
use crate::connection::Smtp;

/// What is known of one server. Who uses it at several places (folders) reports each apart; the worst
/// counts.
#[derive(Default)]
pub(crate) struct Vitals {
    places: Mutex<BTreeMap<String, ConnectionState>>,
    connects: AtomicU64,
    failures: AtomicU64,
    sent: AtomicU64,
}

impl Vitals {
    /// A connection is about to be made.
    pub(crate) fn connects(&self, place: &str) {
        self.connects.fetch_add(1, Relaxed);
        let mut places = self.places();
        if !places.contains_key(place) {
            places.insert(place.to_owned(), state(ConnectionPhase::Connecting, None));
        }
    }

    /// The server does what it is asked.
    pub(crate) fn works(&self, place: &str) {
        self.set(place, state(ConnectionPhase::Up, None));
    }

    /// The server cannot be used; `error` is for administrators.
    pub(crate) fn fails(&self, place: &str, error: &str) {
        self.failures.fetch_add(1, Relaxed);
        let error = Some(error.to_owned());
        self.set(place, state(ConnectionPhase::Down, error));
    }

    /// A mail was taken by the server.
    pub(crate) fn sent(&self) {
        self.sent.fetch_add(1, Relaxed);
    }

    /// Takes a state over; how long the phase has lasted stays.
    fn set(&self, place: &str, mut new: ConnectionState) {
        let mut places = self.places();
        if let Some(old) = places.get(place)
            && old.phase == new.phase
        {
            new.since = old.since;
        }
        places.insert(place.to_owned(), new);
    }

    fn state(&self) -> ConnectionState {
        let badness = |state: &&ConnectionState| match state.phase {
            ConnectionPhase::Idle | ConnectionPhase::Up => 0,
            ConnectionPhase::Blocked | ConnectionPhase::Connecting => 1,
            ConnectionPhase::Down => 2,
        };
        let places = self.places();
        let worst = places.values().max_by_key(badness).cloned();
        worst.unwrap_or(ConnectionState {
            phase: ConnectionPhase::Idle,
            since: Timestamp::from_micros(0),
            error: None,
        })
    }

    fn counters(&self) -> Vec<(&'static str, &'static str, u64)> {
        vec![
            (
                "connects",
                "Connections that were begun.",
                self.connects.load(Relaxed),
            ),
            (
                "failures",
                "Times that the server could not be used.",
                self.failures.load(Relaxed),
            ),
        ]
    }

    fn places(&self) -> MutexGuard<'_, BTreeMap<String, ConnectionState>> {
        self.places.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn state(phase: ConnectionPhase, error: Option<String>) -> ConnectionState {
    ConnectionState {
        phase,
        since: Timestamp::now(),
        error,
    }
}

impl ConnectionHealth for Account {
    fn state(&self) -> ConnectionState {
        self.vitals.state()
    }

    fn counters(&self) -> Vec<(&'static str, &'static str, u64)> {
        self.vitals.counters()
    }
}

impl ConnectionHealth for Smtp {
    fn state(&self) -> ConnectionState {
        self.vitals.state()
    }

    fn counters(&self) -> Vec<(&'static str, &'static str, u64)> {
        let mut all = self.vitals.counters();
        let sent = self.vitals.sent.load(Relaxed);
        all.push(("mails_sent", "Mails that the server has taken.", sent));
        all
    }
}

/// The mailbox behind a connection of kind `imap` or `pop3`.
pub(crate) fn of_account(connection: &Connection) -> Option<Arc<dyn ConnectionHealth>> {
    let account = connection.clone().downcast::<Account>().ok()?;
    Some(account)
}

/// The server behind a connection of kind `smtp`.
pub(crate) fn of_smtp(connection: &Connection) -> Option<Arc<dyn ConnectionHealth>> {
    let smtp = connection.clone().downcast::<Smtp>().ok()?;
    Some(smtp)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_worst_place_counts_and_a_phase_keeps_its_beginning() {
        let vitals = Vitals::default();
        let phase = || vitals.state().phase;
        assert_eq!(phase(), ConnectionPhase::Idle);
        vitals.connects("INBOX");
        assert_eq!(phase(), ConnectionPhase::Connecting);
        vitals.works("INBOX");
        assert_eq!(phase(), ConnectionPhase::Up);
        vitals.connects("Orders");
        vitals.fails("Orders", "no such folder");
        let down = vitals.state();
        assert_eq!(down.phase, ConnectionPhase::Down);
        assert_eq!(down.error.as_deref(), Some("no such folder"));
        vitals.connects("Orders");
        vitals.fails("Orders", "refused");
        let still = vitals.state();
        assert_eq!(still.since, down.since);
        assert_eq!(still.error.as_deref(), Some("refused"));
        vitals.works("INBOX");
        assert_eq!(phase(), ConnectionPhase::Down);
        vitals.works("Orders");
        assert_eq!(phase(), ConnectionPhase::Up);
        assert_eq!(vitals.state().error, None);
        let counters: Vec<u64> = vitals.counters().iter().map(|c| c.2).collect();
        assert_eq!(counters, [3, 2]);
    }
}
