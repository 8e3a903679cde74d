//! Routes that feed themselves: what a target writes is received again, by its own route or through
//! others, so that one message goes round for ever.
//!
//! Absent on purpose: a judgement where something may end it, which is a `when`, an `otherwise` or a
//! `once` on the way; and what leads out of the bus and back, by http, mail or a broker.

use std::collections::{HashSet, VecDeque};
use std::path::PathBuf;
use std::sync::Arc;

use xbus_core::problem::Place;
use xbus_core::{Problems, Receiver};

use crate::route::Draft;

/// Where a route's messages come from.
pub(crate) struct Inflow {
    pub(crate) place: Place,
    /// The embedded queue.
    pub(crate) queue: Option<Arc<str>>,
    pub(crate) receiver: Option<Arc<dyn Receiver>>,
}

/// What a target that every message reaches leaves where a receiver may find it.
pub(crate) struct Outflow {
    pub(crate) target: Arc<str>,
    pub(crate) place: Place,
    /// The embedded queue.
    pub(crate) queue: Option<String>,
    /// Paths as the sender says them.
    pub(crate) files: Vec<PathBuf>,
}

impl Outflow {
    fn feeds(&self, inflow: &Inflow) -> bool {
        match (&self.queue, &inflow.queue) {
            (Some(put), Some(read)) => **put == **read,
            (None, None) => {
                let takes = |receiver: &Arc<dyn Receiver>| {
                    self.files.iter().all(|file| receiver.takes(file))
                };
                !self.files.is_empty() && inflow.receiver.as_ref().is_some_and(takes)
            }
            _ => false,
        }
    }
}

/// An outflow of one route, and the route that it feeds.
type Edge<'a> = (&'a Draft, &'a Outflow, usize);

/// Warns of each circle once, at the target of its first route.
pub(crate) fn check(drafts: &[Draft], problems: &Problems) {
    let drafts: Vec<&Draft> = drafts.iter().filter(|draft| draft.enabled).collect();
    let edges: Vec<Vec<Edge<'_>>> = drafts.iter().map(|from| fed_by(from, &drafts)).collect();
    let mut told = HashSet::new();
    for (at, from) in edges.iter().enumerate() {
        for edge in from.iter().filter(|(.., to)| *to == at) {
            told.insert(at);
            warn(&[*edge], &drafts, problems);
        }
    }
    for at in 0..edges.len() {
        if told.contains(&at) {
            continue;
        }
        if let Some(circle) = shortest(at, &edges) {
            told.extend(circle.iter().map(|(.., to)| *to));
            warn(&circle, &drafts, problems);
        }
    }
}

fn fed_by<'a>(from: &'a Draft, drafts: &[&'a Draft]) -> Vec<Edge<'a>> {
    let mut edges = Vec::new();
    for out in &from.outflows {
        for (to, draft) in drafts.iter().enumerate() {
            if draft
                .inflow
                .as_ref()
                .is_some_and(|inflow| out.feeds(inflow))
            {
                edges.push((from, out, to));
            }
        }
    }
    edges
}

/// The shortest way from a route back to itself.
fn shortest<'a>(start: usize, edges: &[Vec<Edge<'a>>]) -> Option<Vec<Edge<'a>>> {
    let mut came_by: Vec<Option<(usize, Edge<'a>)>> = vec![None; edges.len()];
    let mut next = VecDeque::from([start]);
    while let Some(at) = next.pop_front() {
        for edge in &edges[at] {
            let to = edge.2;
            if came_by[to].is_none() {
                came_by[to] = Some((at, *edge));
                next.push_back(to);
            }
            if to == start {
                next.clear();
                break;
            }
        }
    }
    let mut circle = Vec::new();
    let mut at = start;
    loop {
        let (from, edge) = came_by[at]?;
        circle.push(edge);
        at = from;
        if at == start {
            circle.reverse();
            return Some(circle);
        }
    }
}

fn warn(circle: &[Edge<'_>], drafts: &[&Draft], problems: &Problems) {
    let Some((_, first, _)) = circle.first() else {
        return;
    };
    let step = |(at, (from, out, to)): (usize, &Edge<'_>)| {
        let stands = match at {
            0 => String::new(),
            _ => format!(" at {}", out.place),
        };
        let received = drafts[*to].inflow.as_ref().map(|inflow| &inflow.place);
        let by = match circle.len() {
            1 => String::from("its own route"),
            _ => format!("the route '{}'", drafts[*to].name),
        };
        format!(
            "'{}.{}'{stands} feeds {by}, which receives at {}",
            from.name,
            out.target,
            received.unwrap_or(&drafts[*to].place)
        )
    };
    let steps: Vec<String> = circle.iter().enumerate().map(step).collect();
    let elsewhere = match first.queue {
        Some(_) => "put into another queue",
        None => {
            "write into another folder, or give the receiver a 'pattern' that leaves the names of \
             these files out"
        }
    };
    problems.warning(
        &first.place,
        "feeds-itself",
        format!(
            "each message makes the next one, without end: {}",
            steps.join("; ")
        ),
        format!("{elsewhere}; where it does end, say so with a 'when' at the target"),
    );
}
