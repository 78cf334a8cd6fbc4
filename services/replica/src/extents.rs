//! Newest-wins maps of a disk: which source holds each range.

use std::collections::BTreeMap;

/// Ranges of a disk, each with its source and where in that source it begins. Later inserts win.
#[derive(Debug, Clone)]
pub struct ExtentMap<S> {
    /// start → (end, offset into the source, source)
    runs: BTreeMap<u64, (u64, u64, S)>,
}

impl<S> Default for ExtentMap<S> {
    fn default() -> Self {
        Self { runs: BTreeMap::new() }
    }
}

/// One run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Run<S> {
    /// Byte offset on the disk.
    pub start: u64,
    /// Its end.
    pub end: u64,
    /// Where in the source the run begins.
    pub skip: u64,
    /// Which source.
    pub source: S,
}

impl<S: Copy> ExtentMap<S> {
    /// Puts a range over whatever was there.
    pub fn insert(&mut self, start: u64, end: u64, source: S) {
        if start >= end {
            return;
        }
        // The run that reaches into the range from the left is cut; what of it lies beyond goes on.
        if let Some((&left, &(left_end, skip, left_source))) = self.runs.range(..start).next_back()
            && left_end > start
        {
            self.runs.insert(left, (start, skip, left_source));
            if left_end > end {
                self.runs.insert(end, (left_end, skip + (end - left), left_source));
            }
        }
        while let Some((&at, &(at_end, skip, at_source))) = self.runs.range(start..end).next() {
            self.runs.remove(&at);
            if at_end > end {
                self.runs.insert(end, (at_end, skip + (end - at), at_source));
            }
        }
        self.runs.insert(start, (end, 0, source));
    }

    /// The runs in order, flat.
    pub fn flatten(self) -> Vec<Run<S>> {
        self.runs.into_iter().map(|(start, (end, skip, source))| Run { start, end, skip, source }).collect()
    }

    /// The runs that overlap a range, cut to it.
    pub fn overlapping(&self, start: u64, end: u64) -> Vec<Run<S>> {
        let before = self.runs.range(..start).next_back();
        let runs = before.into_iter().chain(self.runs.range(start..end));
        runs.filter(|(_, (run_end, _, _))| *run_end > start)
            .map(|(&at, &(at_end, skip, source))| {
                Run { start: at, end: at_end, skip, source }.cut(start, end)
            })
            .collect()
    }
}

impl<S: Copy> Run<S> {
    /// The part of it inside a range that it overlaps.
    #[must_use]
    pub fn cut(self, start: u64, end: u64) -> Self {
        let from = self.start.max(start);
        Self {
            start: from,
            end: self.end.min(end),
            skip: self.skip + (from - self.start),
            source: self.source,
        }
    }
}

/// The runs of a flat, sorted list that overlap a range, cut to it.
pub fn overlapping<S: Copy>(runs: &[Run<S>], start: u64, end: u64) -> impl Iterator<Item = Run<S>> + '_ {
    let first = runs.partition_point(|run| run.end <= start);
    runs[first..].iter().take_while(move |run| run.start < end).map(move |run| run.cut(start, end))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn newest_wins_as_in_a_plain_array(writes in proptest::collection::vec((0u64..60, 1u64..20), 1..40)) {
            let mut map = ExtentMap::default();
            let mut cells = vec![None; 96];
            for (source, &(start, length)) in writes.iter().enumerate() {
                map.insert(start, start + length, source);
                for (skip, cell) in cells[start as usize..(start + length) as usize].iter_mut().enumerate() {
                    *cell = Some((source, skip as u64));
                }
            }
            let flat = map.clone().flatten();
            for at in 0..90u64 {
                let expected = cells[at as usize];
                let found = overlapping(&flat, at, at + 1).next().map(|run| (run.source, run.skip));
                prop_assert_eq!(found, expected);
                let found = map.overlapping(at, at + 1).first().map(|run| (run.source, run.skip));
                prop_assert_eq!(found, expected);
            }
        }
    }
}
