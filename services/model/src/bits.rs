//! One bit for each region of a disk: 2 MiB of memory for a terabyte.

/// A set of regions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bits {
    words: Vec<u64>,
    len: u64,
    ones: u64,
}

impl Bits {
    /// `len` regions, none in the set.
    pub fn new(len: u64) -> Self {
        Self { words: vec![0; (len as usize).div_ceil(64)], len, ones: 0 }
    }
    /// From words as they stand in a file; bits beyond `len` are dropped.
    pub fn from_words(mut words: Vec<u64>, len: u64) -> Self {
        words.resize((len as usize).div_ceil(64), 0);
        mask_tail(&mut words, len);
        let ones = words.iter().map(|word| u64::from(word.count_ones())).sum();
        Self { words, len, ones }
    }
    /// How many regions there are.
    pub const fn len(&self) -> u64 {
        self.len
    }
    /// Whether none is in the set.
    pub const fn is_empty(&self) -> bool {
        self.ones == 0
    }
    /// How many are in the set.
    pub const fn ones(&self) -> u64 {
        self.ones
    }
    /// The bits in words of 64, the lowest first.
    pub fn words(&self) -> &[u64] {
        &self.words
    }
    /// Whether a region is in the set.
    pub fn get(&self, at: u64) -> bool {
        self.words[(at / 64) as usize] >> (at % 64) & 1 == 1
    }
    /// Puts a region in. Returns whether it was not in before.
    pub fn set(&mut self, at: u64) -> bool {
        let word = &mut self.words[(at / 64) as usize];
        let new = *word >> (at % 64) & 1 == 0;
        *word |= 1 << (at % 64);
        self.ones += u64::from(new);
        new
    }
    /// Takes a region out. Returns whether it was in before.
    pub fn clear(&mut self, at: u64) -> bool {
        let word = &mut self.words[(at / 64) as usize];
        let was = *word >> (at % 64) & 1 == 1;
        *word &= !(1 << (at % 64));
        self.ones -= u64::from(was);
        was
    }
    /// Puts all in.
    pub fn set_all(&mut self) {
        self.words.fill(u64::MAX);
        mask_tail(&mut self.words, self.len);
        self.ones = self.len;
    }
    /// Takes all out.
    pub fn clear_all(&mut self) {
        self.words.fill(0);
        self.ones = 0;
    }
    /// Makes this the same set as `other`, which has as many regions.
    pub fn copy_from(&mut self, other: &Self) {
        self.words.copy_from_slice(&other.words);
        self.ones = other.ones;
    }
    /// The first region of the set at or after `from`.
    pub fn next_one(&self, from: u64) -> Option<u64> {
        let mut word = (from / 64) as usize;
        let mut bits = self.words.get(word)? & (u64::MAX << (from % 64));
        loop {
            if bits != 0 {
                return Some(word as u64 * 64 + u64::from(bits.trailing_zeros()));
            }
            word += 1;
            bits = *self.words.get(word)?;
        }
    }
    /// The first run of regions of the set at or after `from`, of at most `most`: its start and its end.
    pub fn next_run(&self, from: u64, most: u64) -> Option<(u64, u64)> {
        let start = self.next_one(from)?;
        let limit = start.saturating_add(most).min(self.len);
        let mut end = start + 1;
        while end < limit && self.get(end) {
            end += 1;
        }
        Some((start, end))
    }
}

fn mask_tail(words: &mut [u64], len: u64) {
    let used = len % 64;
    if used != 0
        && let Some(last) = words.last_mut()
    {
        *last &= (1 << used) - 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_word_ends_where_the_disk_does() {
        let mut bits = Bits::new(70);
        bits.set_all();
        assert_eq!((bits.ones(), bits.words()[1]), (70, 0b11_1111));
        assert_eq!(Bits::from_words(vec![u64::MAX; 9], 70), bits);
        assert!(bits.clear(69) && !bits.clear(69) && bits.set(69) && !bits.set(69));
        assert_eq!((bits.next_run(0, 1_000), bits.next_run(60, 5)), (Some((0, 70)), Some((60, 65))));
        bits.clear_all();
        assert_eq!((bits.next_one(0), bits.next_one(700)), (None, None));
    }
}
