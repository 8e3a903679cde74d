//! One lane: the places of its entries in order. Head and tail are in memory, the middle of a long
//! lane is in pages.

use std::collections::VecDeque;
use std::io;

use crate::pages::{Handle, Pages, Place};

/// A page of the middle.
#[derive(Clone, Debug)]
pub struct PageRef {
    /// Number of its first entry.
    pub first: u64,
    pub handle: Handle,
    pub count: u32,
}

/// The places of a lane, by number: head, then pages, then tail.
#[derive(Clone, Debug, Default)]
pub struct Lane {
    pub head: VecDeque<Place>,
    pub pages: VecDeque<PageRef>,
    pub tail: VecDeque<Place>,
    pub depth: u64,
    /// Bytes of its entries that memory keeps.
    pub kept: usize,
}

impl Lane {
    /// The oldest entry. A lane that is not empty has one in memory.
    pub fn front(&self) -> Option<Place> {
        self.head.front().copied()
    }

    /// Adds an entry where its number belongs: at the end for a new one.
    pub fn insert(&mut self, place: Place, pages: &mut Pages) -> io::Result<()> {
        self.depth += 1;
        let last = self
            .tail
            .back()
            .or(if self.pages.is_empty() {
                self.head.back()
            } else {
                None
            })
            .map(|place| place.0);
        if last.is_some_and(|last| place.0 > last) || (last.is_none() && self.pages.is_empty()) {
            self.push(place, pages);
            return Ok(());
        }
        if self.pages.is_empty() && self.tail.is_empty()
            || self.head.back().is_some_and(|back| place.0 < back.0)
            || self.pages.front().is_some_and(|page| place.0 < page.first)
        {
            insert_sorted(&mut self.head, place);
            self.unload(pages);
            return Ok(());
        }
        if self.tail.front().is_some_and(|front| place.0 > front.0) {
            insert_sorted(&mut self.tail, place);
            return Ok(());
        }
        match self.page_of(place.0) {
            Some(at) => {
                let mut places: VecDeque<Place> = pages.read(self.pages[at].handle)?.into();
                // Behind the last page's last entry and before the tail.
                if at + 1 == self.pages.len() && places.back().is_some_and(|b| b.0 < place.0) {
                    insert_sorted(&mut self.tail, place);
                    return Ok(());
                }
                insert_sorted(&mut places, place);
                self.replace_page(at, places, pages)
            }
            None => {
                insert_sorted(&mut self.tail, place);
                Ok(())
            }
        }
    }

    fn push(&mut self, place: Place, pages: &mut Pages) {
        let capacity = pages.capacity;
        if self.pages.is_empty() && self.tail.is_empty() && self.head.len() < 2 * capacity {
            self.head.push_back(place);
            return;
        }
        self.tail.push_back(place);
        if self.tail.len() >= 2 * capacity && self.tail.len().is_multiple_of(capacity) {
            // Without room on the disk they stay in memory until there is some.
            while self.tail.len() > capacity {
                let places = self.tail.iter().copied().take(capacity);
                let (first, count) = (self.tail[0].0, capacity as u32);
                match pages.write(places.collect::<Vec<_>>().into_iter()) {
                    Ok(handle) => {
                        self.tail.drain(..capacity);
                        self.pages.push_back(PageRef {
                            first,
                            handle,
                            count,
                        });
                    }
                    Err(_) => break,
                }
            }
        }
    }

    /// Moves what releases piled up at the head back into a page.
    fn unload(&mut self, pages: &mut Pages) {
        let capacity = pages.capacity;
        if self.head.len() < 4 * capacity {
            return;
        }
        if self.pages.is_empty() && self.tail.is_empty() {
            self.tail = self.head.split_off(self.head.len() - capacity);
        }
        while self.head.len() > 2 * capacity {
            let places = self.head.split_off(self.head.len() - capacity);
            match pages.write(places.iter().copied()) {
                Ok(handle) => self.pages.push_front(PageRef {
                    first: places[0].0,
                    handle,
                    count: capacity as u32,
                }),
                Err(_) => {
                    self.head.extend(places);
                    return;
                }
            }
        }
    }

    /// Takes an entry out, wherever it is, and says where its put is.
    pub fn remove(&mut self, seq: u64, pages: &mut Pages) -> io::Result<Option<u64>> {
        let found = if self.head.front().is_some_and(|front| front.0 == seq) {
            self.head.pop_front().map(|place| place.1)
        } else if let Ok(at) = self.head.binary_search_by_key(&seq, |place| place.0) {
            self.head.remove(at).map(|place| place.1)
        } else if let Ok(at) = self.tail.binary_search_by_key(&seq, |place| place.0) {
            self.tail.remove(at).map(|place| place.1)
        } else if let Some(at) = self.page_of(seq) {
            let mut places: VecDeque<Place> = pages.read(self.pages[at].handle)?.into();
            match places.binary_search_by_key(&seq, |place| place.0) {
                Ok(within) => {
                    let position = places.remove(within).map(|place| place.1);
                    self.replace_page(at, places, pages)?;
                    position
                }
                Err(_) => None,
            }
        } else {
            None
        };
        if found.is_some() {
            self.depth -= 1;
            self.refill(pages)?;
        }
        Ok(found)
    }

    fn refill(&mut self, pages: &mut Pages) -> io::Result<()> {
        if !self.head.is_empty() {
            return Ok(());
        }
        match self.pages.front() {
            Some(page) => {
                let handle = page.handle;
                self.head = pages.read(handle)?.into();
                pages.free(handle);
                self.pages.pop_front();
            }
            None => std::mem::swap(&mut self.head, &mut self.tail),
        }
        Ok(())
    }

    /// Where an entry's put is.
    pub fn find(&self, seq: u64, pages: &Pages) -> io::Result<Option<u64>> {
        for window in [&self.head, &self.tail] {
            if let Ok(at) = window.binary_search_by_key(&seq, |place| place.0) {
                return Ok(Some(window[at].1));
            }
        }
        match self.page_of(seq) {
            Some(at) => {
                let places = pages.read(self.pages[at].handle)?;
                Ok(places
                    .binary_search_by_key(&seq, |place| place.0)
                    .ok()
                    .map(|within| places[within].1))
            }
            None => Ok(None),
        }
    }

    /// Sets a new place for an entry's put and says the old one.
    pub fn relocate(
        &mut self,
        seq: u64,
        position: u64,
        pages: &mut Pages,
    ) -> io::Result<Option<u64>> {
        for window in [&mut self.head, &mut self.tail] {
            if let Ok(at) = window.binary_search_by_key(&seq, |place| place.0) {
                return Ok(Some(std::mem::replace(&mut window[at].1, position)));
            }
        }
        let Some(at) = self.page_of(seq) else {
            return Ok(None);
        };
        let mut places: VecDeque<Place> = pages.read(self.pages[at].handle)?.into();
        match places.binary_search_by_key(&seq, |place| place.0) {
            Ok(within) => {
                let old = std::mem::replace(&mut places[within].1, position);
                self.replace_page(at, places, pages)?;
                Ok(Some(old))
            }
            Err(_) => Ok(None),
        }
    }

    /// The page in which a number would stand.
    fn page_of(&self, seq: u64) -> Option<usize> {
        self.pages
            .partition_point(|page| page.first <= seq)
            .checked_sub(1)
    }

    /// Writes a page anew: none for no entries, two when they no longer fit one.
    fn replace_page(
        &mut self,
        at: usize,
        mut places: VecDeque<Place>,
        pages: &mut Pages,
    ) -> io::Result<()> {
        let old = self.pages[at].handle;
        let mut new = Vec::new();
        let second = if places.len() > pages.capacity {
            places.split_off(places.len() / 2)
        } else {
            VecDeque::new()
        };
        for part in [places, second] {
            if let Some(first) = part.front() {
                new.push(PageRef {
                    first: first.0,
                    count: part.len() as u32,
                    handle: pages.write(part.iter().copied())?,
                });
            }
        }
        self.pages.remove(at);
        for (offset, page) in new.into_iter().enumerate() {
            self.pages.insert(at + offset, page);
        }
        pages.free(old);
        Ok(())
    }

    /// Entries that memory holds.
    pub fn in_memory(&self) -> usize {
        self.head.len() + self.tail.len()
    }
}

fn insert_sorted(window: &mut VecDeque<Place>, place: Place) {
    let at = window.partition_point(|other| other.0 < place.0);
    window.insert(at, place);
}
