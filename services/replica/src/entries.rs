//! The records of the journal in memory, by a number that each keeps for as long as it is there.
//!
//! They leave at the front, when the oldest history is folded, and in the middle, when a stretch of history is
//! thinned. Numbers never move, so lists of numbers stay good; memory goes with each chunk of which nothing is left.

use crate::store::Entry;
use continuum_model::feed::frame::RowKind;
use continuum_model::time::Timestamp;
use continuum_model::units::{DiskIndex, FrameNumber, Sequence};
use std::collections::VecDeque;
use std::ops::Range;

const CHUNK: u64 = 1024;

/// Entries by number; holes between them.
#[derive(Default)]
pub(crate) struct Entries {
    /// `None`: nothing of it is left.
    chunks: VecDeque<Option<Chunk>>,
    /// The first chunk that is held, counted from the first ever.
    first_chunk: u64,
    /// The number that the next entry gets.
    next: u64,
    /// The number of the first entry that is left, or `next`.
    first: u64,
}

struct Chunk {
    slots: Slots,
    left: usize,
}

enum Slots {
    /// As long as every one lies near enough to the first that was put here: 28 bytes each instead of 48.
    Packed(Entry, Vec<Option<Packed>>),
    /// A quiet machine's, or a stretch that is half thinned.
    Whole(Vec<Option<Entry>>),
}

/// An entry, beside the first of its chunk. Its fields are ordered and split so that none is padded.
#[derive(Clone, Copy)]
struct Packed {
    sequence: u32,
    time: u32,
    length: u32,
    data_at: u32,
    offset_low: u32,
    offset_high: u16,
    frame: u16,
    disk: DiskIndex,
    kind: RowKind,
}

const _: () = assert!(size_of::<Option<Packed>>() == 28, "a million entries take 28 MB");

impl Packed {
    /// `None`: it does not fit.
    fn of(entry: &Entry, first: &Entry) -> Option<Self> {
        Some(Self {
            sequence: entry.sequence.0.checked_sub(first.sequence.0)?.try_into().ok()?,
            time: entry.time.micros().checked_sub(first.time.micros())?.try_into().ok()?,
            length: entry.length,
            data_at: entry.data_at,
            offset_low: (entry.offset & u64::from(u32::MAX)) as u32,
            offset_high: (entry.offset >> 32).try_into().ok()?,
            frame: entry.frame.0.checked_sub(first.frame.0)?.try_into().ok()?,
            disk: entry.disk,
            kind: entry.kind,
        })
    }

    fn open(&self, first: &Entry) -> Entry {
        Entry {
            sequence: Sequence(first.sequence.0 + u64::from(self.sequence)),
            time: Timestamp::from_micros(first.time.micros() + i64::from(self.time)),
            offset: u64::from(self.offset_high) << 32 | u64::from(self.offset_low),
            frame: FrameNumber(first.frame.0 + u64::from(self.frame)),
            length: self.length,
            data_at: self.data_at,
            disk: self.disk,
            kind: self.kind,
        }
    }
}

impl Chunk {
    /// With room for a whole chunk of entries that lie near this one, and none in it.
    fn beside(first: Entry) -> Self {
        Self { slots: Slots::Packed(first, Vec::with_capacity(CHUNK as usize)), left: 0 }
    }

    const fn len(&self) -> usize {
        match &self.slots {
            Slots::Packed(_, slots) => slots.len(),
            Slots::Whole(slots) => slots.len(),
        }
    }

    fn get(&self, at: usize) -> Option<Entry> {
        match &self.slots {
            Slots::Packed(first, slots) => slots.get(at)?.as_ref().map(|packed| packed.open(first)),
            Slots::Whole(slots) => *slots.get(at)?,
        }
    }

    fn take(&mut self, at: usize) -> Option<Entry> {
        let entry = self.get(at)?;
        match &mut self.slots {
            Slots::Packed(_, slots) => slots[at] = None,
            Slots::Whole(slots) => slots[at] = None,
        }
        self.left -= 1;
        Some(entry)
    }

    /// Fills a slot that is empty.
    fn put(&mut self, at: usize, entry: Entry) {
        if let Slots::Packed(first, slots) = &mut self.slots {
            if let Some(packed) = Packed::of(&entry, first) {
                slots.resize(slots.len().max(at + 1), None);
                slots[at] = Some(packed);
                self.left += 1;
                return;
            }
            let whole = slots.iter().map(|packed| packed.as_ref().map(|packed| packed.open(first)));
            self.slots = Slots::Whole(whole.collect());
        }
        if let Slots::Whole(slots) = &mut self.slots {
            slots.resize(slots.len().max(at + 1), None);
            slots[at] = Some(entry);
            self.left += 1;
        }
    }
}

impl Entries {
    /// The number that the next entry gets.
    pub(crate) const fn next_number(&self) -> u64 {
        self.next
    }

    pub(crate) fn push(&mut self, entry: Entry) {
        let chunk = (self.next / CHUNK - self.first_chunk) as usize;
        while self.chunks.len() <= chunk {
            self.chunks.push_back(None);
        }
        // Slots before the first entry of a chunk are none: numbers go on where they were.
        let chunk = self.chunks[chunk].get_or_insert_with(|| Chunk::beside(entry));
        chunk.put((self.next % CHUNK) as usize, entry);
        self.next += 1;
    }

    fn slot(&mut self, number: u64) -> Option<&mut Option<Chunk>> {
        let chunk = (number / CHUNK).checked_sub(self.first_chunk)?;
        self.chunks.get_mut(chunk as usize)
    }

    pub(crate) fn get(&self, number: u64) -> Option<Entry> {
        let chunk = (number / CHUNK).checked_sub(self.first_chunk)?;
        self.chunks.get(chunk as usize)?.as_ref()?.get((number % CHUNK) as usize)
    }

    fn remove(&mut self, number: u64) -> Option<Entry> {
        let place = self.slot(number)?;
        let chunk = place.as_mut()?;
        let entry = chunk.take((number % CHUNK) as usize)?;
        if chunk.left == 0 {
            *place = None;
        }
        Some(entry)
    }

    /// Removes the oldest one.
    pub(crate) fn pop_front(&mut self) -> Option<(u64, Entry)> {
        let number = self.numbers(self.first..self.next).next()?;
        let entry = self.remove(number)?;
        self.first = number + 1;
        while self.chunks.front().is_some_and(Option::is_none) && self.chunks.len() > 1 {
            self.chunks.pop_front();
            self.first_chunk += 1;
        }
        Some((number, entry))
    }

    pub(crate) fn front(&self) -> Option<Entry> {
        self.iter().next()
    }

    /// The numbers that are left in a range.
    fn numbers(&self, range: Range<u64>) -> impl Iterator<Item = u64> + '_ {
        self.numbered(range).map(|(number, _)| number)
    }

    /// The entries in a range of numbers, oldest first.
    pub(crate) fn numbered(&self, range: Range<u64>) -> impl Iterator<Item = (u64, Entry)> + '_ {
        let range = range.start.max(self.first)..range.end.min(self.next);
        let chunks = range.start / CHUNK..range.end.div_ceil(CHUNK).max(range.start / CHUNK);
        chunks
            .filter_map(move |number| {
                let chunk = number.checked_sub(self.first_chunk)?;
                Some((number * CHUNK, self.chunks.get(chunk as usize)?.as_ref()?))
            })
            .flat_map(move |(start, chunk)| {
                let from = range.start.saturating_sub(start) as usize;
                let to = (range.end - start).min(chunk.len() as u64) as usize;
                (from..to).filter_map(move |at| Some((start + at as u64, chunk.get(at)?)))
            })
    }

    /// All of them, oldest first.
    pub(crate) fn iter(&self) -> impl Iterator<Item = Entry> + '_ {
        self.after(self.first)
    }

    /// Those from a number on, oldest first.
    pub(crate) fn after(&self, number: u64) -> impl Iterator<Item = Entry> + '_ {
        self.numbered(number..self.next).map(|(_, entry)| entry)
    }

    /// The number of the first entry of which `before` is not true; it is true of all that come before that one.
    pub(crate) fn seek(&self, before: impl Fn(&Entry) -> bool) -> u64 {
        // Everything below `low` is before, nothing from `high` on is.
        let (mut low, mut high) = (self.first, self.next);
        while low < high {
            let middle = low + (high - low) / 2;
            match self.numbered(middle..high).next() {
                None => high = middle,
                Some((number, entry)) if before(&entry) => low = number + 1,
                Some(_) => high = middle,
            }
        }
        self.numbered(low..self.next).next().map_or(self.next, |(number, _)| number)
    }

    /// The last entry below a number.
    pub(crate) fn last_below(&self, number: u64) -> Option<Entry> {
        let chunks = self.first_chunk..number.min(self.next).div_ceil(CHUNK).max(self.first_chunk);
        chunks.rev().find_map(|chunk| {
            let held = self.chunks.get((chunk - self.first_chunk) as usize)?.as_ref()?;
            let below = number.saturating_sub(chunk * CHUNK).min(held.len() as u64) as usize;
            (0..below).rev().find_map(|at| held.get(at))
        })
    }

    /// Puts entries in place of those in a range of numbers, which are at least as many. Tells each that leaves and
    /// each that comes, with its number.
    pub(crate) fn replace(
        &mut self,
        range: Range<u64>,
        new: impl ExactSizeIterator<Item = Entry>,
        mut leaves: impl FnMut(u64, &Entry),
        mut comes: impl FnMut(u64, &Entry),
    ) {
        for number in range.clone() {
            if let Some(entry) = self.remove(number) {
                leaves(number, &entry);
            }
        }
        for (number, entry) in range.zip(new) {
            comes(number, &entry);
            let Some(place) = self.slot(number) else { continue };
            place.get_or_insert_with(|| Chunk::beside(entry)).put((number % CHUNK) as usize, entry);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    /// Most chunks of these can be packed; some have a quiet hour in them, or numbers of thinned frames.
    fn entry(sequence: u64) -> Entry {
        let quiet = sequence / 1777 * (1 << 33);
        let thinned = if sequence % 3001 < 40 { 1 << 63 } else { 0 };
        Entry {
            sequence: Sequence(sequence),
            time: Timestamp::from_micros((sequence + quiet) as i64),
            offset: sequence << 30,
            frame: FrameNumber((sequence / 3) | thinned),
            length: 512,
            data_at: sequence as u32,
            disk: DiskIndex(0),
            kind: RowKind::Write,
        }
    }

    #[derive(Debug, Clone)]
    enum Act {
        Push(u16),
        Pop(u16),
        Replace(u16, u16, u16),
    }

    fn act() -> impl Strategy<Value = Act> {
        prop_oneof![
            (1u16..3000).prop_map(Act::Push),
            (1u16..1500).prop_map(Act::Pop),
            (0u16..6000, 1u16..4000, 0u16..40).prop_map(|(at, count, new)| Act::Replace(at, count, new)),
        ]
    }

    proptest! {
        #[test]
        fn it_is_an_ordered_map(acts in proptest::collection::vec(act(), 1..12), asked in 0u64..12_000) {
            let (mut entries, mut model, mut sequence) = (Entries::default(), BTreeMap::new(), 0);
            for act in acts {
                match act {
                    Act::Push(count) => for _ in 0..count {
                        sequence += 1;
                        model.insert(entries.next_number(), sequence);
                        entries.push(entry(sequence));
                    },
                    Act::Pop(count) => for _ in 0..count {
                        let popped = entries.pop_front().map(|(number, entry)| (number, entry.sequence.0));
                        prop_assert_eq!(popped, model.pop_first());
                    },
                    Act::Replace(at, count, new) => {
                        let Some((&first, _)) = model.iter().nth(usize::from(at)) else { continue };
                        let range = first..(first + u64::from(count)).min(entries.next_number());
                        let Some((_, &last)) = model.range(range.clone()).next_back() else { continue };
                        let new: Vec<Entry> = (0..new.min((range.end - range.start) as u16)).map(|_| entry(last)).collect();
                        let (mut left, mut came) = (Vec::new(), Vec::new());
                        entries.replace(
                            range.clone(),
                            new.into_iter(),
                            |number, entry| left.push((number, entry.sequence.0)),
                            |number, entry| came.push((number, entry.sequence.0)),
                        );
                        let gone: Vec<_> = model.range(range.clone()).map(|(number, at)| (*number, *at)).collect();
                        prop_assert_eq!(left, gone.clone());
                        gone.iter().for_each(|(number, _)| { model.remove(number); });
                        model.extend(came);
                    }
                }
                let found: Vec<_> = entries.iter().collect();
                prop_assert_eq!(found, model.values().copied().map(entry).collect::<Vec<_>>());
                prop_assert_eq!(entries.front().map(|entry| entry.sequence.0), model.values().next().copied());
                let sought = entries.seek(|entry| entry.sequence.0 < asked);
                let expected = model.iter().find(|(_, at)| **at >= asked).map_or(entries.next_number(), |(n, _)| *n);
                prop_assert_eq!(sought, expected);
                let below = entries.last_below(asked).map(|entry| entry.sequence.0);
                prop_assert_eq!(below, model.range(..asked).next_back().map(|(_, at)| *at));
                prop_assert_eq!(entries.get(asked), model.get(&asked).copied().map(entry));
            }
        }
    }
}
