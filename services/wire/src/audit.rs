//! The chain of an audit log: one definition for the vault that writes it and for whoever verifies an export.
//!
//! A line's hash covers the hash of the line before it and every field of its own, lengths in front, so that no text can
//! pose as its neighbour. A line that was changed, left out, put in or moved breaks every hash after it. That the end was
//! cut off only a hash kept elsewhere can tell.

use serde::Deserialize;
use sha2::{Digest, Sha256};

/// One line, as exports hold it. `null` stands for an empty text.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Line {
    /// Its place, from 1.
    pub seq: u64,
    /// When, in microseconds of UTC.
    pub time_us: i64,
    /// Who.
    #[serde(default, deserialize_with = "text")]
    pub actor: String,
    /// What was asked for.
    #[serde(default, deserialize_with = "text")]
    pub act: String,
    /// Of what.
    #[serde(default, deserialize_with = "text")]
    pub object: String,
    /// How it ended.
    #[serde(default, deserialize_with = "text")]
    pub outcome: String,
    /// The rest.
    #[serde(default, deserialize_with = "text")]
    pub detail: String,
    /// As the vault wrote it, in hexadecimal.
    #[serde(default, deserialize_with = "text")]
    pub hash: String,
}

fn text<'de, D: serde::Deserializer<'de>>(from: D) -> Result<String, D::Error> {
    Ok(Option::<String>::deserialize(from)?.unwrap_or_default())
}

/// The hash of a line behind another one.
pub fn sum(before: &str, seq: u64, time_us: i64, texts: [&str; 5]) -> String {
    let mut sum = Sha256::new();
    for part in [before].into_iter().chain(texts) {
        sum.update((part.len() as u64).to_be_bytes());
        sum.update(part.as_bytes());
    }
    sum.update(seq.to_be_bytes());
    sum.update(time_us.to_be_bytes());
    sum.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Follows a log from its first line on.
#[derive(Debug, Default)]
pub struct Chain {
    count: u64,
    head: String,
}

impl Chain {
    /// Takes the next line.
    ///
    /// Errors: why it does not follow from the one before it.
    pub fn next(&mut self, line: &Line) -> Result<(), String> {
        if line.seq != self.count + 1 {
            return Err(format!("line {} was expected here", self.count + 1));
        }
        let texts = [&line.actor, &line.act, &line.object, &line.outcome, &line.detail].map(String::as_str);
        if sum(&self.head, line.seq, line.time_us, texts) != line.hash {
            return Err("its hash is not that of what stands there and of the line before".into());
        }
        self.count += 1;
        self.head.clone_from(&line.hash);
        Ok(())
    }
    /// How many lines followed.
    pub const fn count(&self) -> u64 {
        self.count
    }
    /// The hash of the last one.
    pub fn head(&self) -> &str {
        &self.head
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn log() -> Vec<Line> {
        let mut before = String::new();
        (1..=5)
            .map(|seq| {
                let detail = format!("job {seq}");
                let hash = sum(&before, seq, 7, ["ada", "failover", "web", "intent", &detail]);
                before.clone_from(&hash);
                let [actor, act, object, outcome] = ["ada", "failover", "web", "intent"].map(String::from);
                Line { seq, time_us: 7, actor, act, object, outcome, detail, hash }
            })
            .collect()
    }

    fn first_wrong(lines: &[Line]) -> Option<u64> {
        let mut chain = Chain::default();
        lines.iter().find(|line| chain.next(line).is_err()).map(|line| line.seq)
    }

    #[test]
    fn the_first_line_that_does_not_follow_is_named() {
        assert_eq!(first_wrong(&log()), None);
        let mut edited = log();
        edited[2].actor = "eve".into();
        assert_eq!(first_wrong(&edited), Some(3));
        let mut cut = log();
        cut.remove(1);
        assert_eq!(first_wrong(&cut), Some(3));
        let mut moved = log();
        moved.swap(1, 2);
        assert_eq!(first_wrong(&moved), Some(3));
        let mut forged = log();
        forged[1].detail = "another".into();
        forged[1].hash = sum(&forged[0].hash, 2, 7, ["ada", "failover", "web", "intent", "another"]);
        assert_eq!(first_wrong(&forged), Some(3), "the line after it tells");
        assert_eq!(first_wrong(&log()[..3]), None, "a tail that was cut off leaves a chain that holds");
    }
}
