//! Which messages of one store have been delivered from one partition of a lane at a broker, so that
//! what is handed over twice is delivered once.
//!
//! Numbers of one store ascend, as a rule. A broker that refuses a message and takes the next one
//! breaks it: each message says which one was handed over before it, and what did not come is
//! expected until it does.

/// Most ranges that are kept apart. Beyond it neighbours become one: rather twice than never.
const MOST: usize = 64;

/// What has been delivered: all up to a number, but for ranges that have not come yet.
#[derive(Clone, Default, PartialEq, Eq, Debug)]
pub struct Progress {
    up_to: Option<u64>,
    /// First and last number each, ascending, apart from each other, below `up_to`.
    missing: Vec<(u64, u64)>,
}

impl Progress {
    /// Whether the message of that number has been delivered.
    pub fn has(&self, number: u64) -> bool {
        self.up_to.is_some_and(|up_to| number <= up_to)
            && !self
                .missing
                .iter()
                .any(|(first, last)| (*first..=*last).contains(&number))
    }

    /// The message of that number has been delivered; `after` is the number of the one that was handed
    /// over before it, where that is known.
    pub fn deliver(&mut self, number: u64, after: Option<u64>) {
        if self.up_to.is_some_and(|up_to| number <= up_to) {
            return self.came(number);
        }
        let next = self.up_to.map_or(0, |up_to| up_to.saturating_add(1));
        if let Some(after) = after.filter(|after| (next..number).contains(after)) {
            self.missing.push((next, after));
            if self.missing.len() > MOST {
                let (_, last) = self.missing.remove(1);
                self.missing[0].1 = last;
            }
        }
        self.up_to = Some(number);
    }

    fn came(&mut self, number: u64) {
        let within = |(first, last): &(u64, u64)| (*first..=*last).contains(&number);
        let Some(at) = self.missing.iter().position(within) else {
            return;
        };
        let (first, last) = self.missing.remove(at);
        if number < last {
            self.missing.insert(at, (number + 1, last));
        }
        if first < number {
            self.missing.insert(at, (first, number - 1));
        }
    }

    /// Learns what another node has delivered. Whether that was news.
    pub fn learn(&mut self, other: &Progress) -> bool {
        let (low, high) = match self.up_to < other.up_to {
            true => (&*self, other),
            false => (other, &*self),
        };
        let above = low.up_to.map_or(0, |up_to| up_to.saturating_add(1));
        let mut missing = Vec::new();
        for (first, last) in &high.missing {
            for (from, to) in low.missing.iter().chain([&(above, u64::MAX)]) {
                let common = (*first.max(from), *last.min(to));
                if common.0 <= common.1 {
                    missing.push(common);
                }
            }
        }
        let sum = Self {
            up_to: high.up_to,
            missing,
        };
        let news = sum != *self;
        *self = sum;
        news
    }

    /// The number up to which messages have been delivered, and first and last number of each range
    /// below that is expected still.
    pub fn parts(&self) -> (Option<u64>, &[(u64, u64)]) {
        (self.up_to, &self.missing)
    }

    /// From what [`Progress::parts`] gave; nothing where that does not fit together.
    pub fn from_parts(up_to: Option<u64>, missing: Vec<(u64, u64)>) -> Option<Self> {
        let mut from = 0;
        for (first, last) in &missing {
            if *first < from || last < first || up_to.is_none_or(|up_to| *last >= up_to) {
                return None;
            }
            from = last + 1;
        }
        Some(Self { up_to, missing })
    }

    /// As the store keeps it: numbers of 8 bytes each, the highest byte first.
    pub(crate) fn to_bytes(&self) -> Vec<u8> {
        let ranges = self
            .missing
            .iter()
            .flat_map(|(first, last)| [*first, *last]);
        self.up_to
            .into_iter()
            .chain(ranges)
            .flat_map(u64::to_be_bytes)
            .collect()
    }

    /// Reads that.
    pub(crate) fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let (numbers, []) = bytes.as_chunks::<8>() else {
            return None;
        };
        let mut numbers = numbers.iter().map(|number| u64::from_be_bytes(*number));
        let up_to = numbers.next();
        let rest: Vec<u64> = numbers.collect();
        let (pairs, []) = rest.as_chunks::<2>() else {
            return None;
        };
        Self::from_parts(
            up_to,
            pairs.iter().map(|[first, last]| (*first, *last)).collect(),
        )
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn of(steps: &[(u64, Option<u64>)]) -> Progress {
        let mut progress = Progress::default();
        for (number, after) in steps {
            progress.deliver(*number, *after);
        }
        progress
    }

    #[test]
    fn what_comes_in_order_is_known_by_one_number() {
        let progress = of(&[(3, None), (5, Some(3)), (9, Some(5))]);
        assert_eq!(progress.parts(), (Some(9), &[][..]));
        assert!(progress.has(5) && progress.has(9) && !progress.has(10));
    }

    #[test]
    fn what_was_refused_while_later_ones_were_taken_is_expected() {
        // 6 and 7 were refused, 8 was taken.
        let mut progress = of(&[(5, None), (8, Some(7))]);
        assert!(!progress.has(6) && !progress.has(7) && progress.has(8) && progress.has(5));
        progress.deliver(6, Some(5));
        assert!(progress.has(6) && !progress.has(7));
        progress.deliver(7, Some(6));
        assert_eq!(progress, of(&[(8, None)]));
        // The very first one.
        let first = of(&[(2, Some(1))]);
        assert!(!first.has(1) && first.has(2));
    }

    #[test]
    fn too_many_gaps_lose_nothing() {
        let steps: Vec<(u64, Option<u64>)> = (1..300).map(|n| (n * 10, Some(n * 10 - 5))).collect();
        let progress = of(&steps);
        assert!(progress.parts().1.len() <= MOST);
        for n in 1..300 {
            assert!(!progress.has(n * 10 - 5), "{n}");
        }
    }

    #[test]
    fn nodes_learn_from_each_other_whatever_either_has() {
        let parts = [
            of(&[]),
            of(&[(4, None)]),
            of(&[(4, None), (9, Some(7))]),
            of(&[(4, None), (9, Some(7)), (6, None)]),
            of(&[(2, None), (12, Some(11))]),
        ];
        for left in &parts {
            for right in &parts {
                let mut both = left.clone();
                let news = both.learn(right);
                assert_eq!(news, both != *left);
                let known: BTreeSet<u64> = (0..20).filter(|n| both.has(*n)).collect();
                let wanted: BTreeSet<u64> =
                    (0..20).filter(|n| left.has(*n) || right.has(*n)).collect();
                assert_eq!(known, wanted, "{left:?} {right:?}");
                let back = Progress::from_bytes(&both.to_bytes());
                assert_eq!(back.as_ref(), Some(&both));
            }
        }
        assert_eq!(Progress::from_bytes(&[1, 2, 3]), None);
        assert_eq!(Progress::from_parts(Some(5), vec![(3, 9)]), None);
    }
}
