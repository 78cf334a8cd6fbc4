//! What differs between two texts, line by line.

/// A line of a difference.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Line<'a> {
    /// In both.
    Same(&'a str),
    /// Only in the first.
    Gone(&'a str),
    /// Only in the second.
    New(&'a str),
    /// So many lines that are in both, left out.
    Skipped(usize),
}

/// Lines that are told around a difference.
const AROUND: usize = 2;
/// Larger than this, both are told whole: finding the shortest difference would take too long.
const CELLS_MAX: usize = 4 << 20;

/// What differs; empty where nothing does.
pub fn lines<'a>(before: &'a str, after: &'a str) -> Vec<Line<'a>> {
    let (a, b): (Vec<&str>, Vec<&str>) = (before.lines().collect(), after.lines().collect());
    if a == b {
        return Vec::new();
    }
    let front = a.iter().zip(&b).take_while(|(x, y)| x == y).count();
    let back = a[front..].iter().rev().zip(b[front..].iter().rev()).take_while(|(x, y)| x == y).count();
    let (x, y) = (&a[front..a.len() - back], &b[front..b.len() - back]);
    let mut all: Vec<Line<'a>> = a[..front].iter().map(|line| Line::Same(line)).collect();
    middle(x, y, &mut all);
    all.extend(a[a.len() - back..].iter().map(|line| Line::Same(line)));
    around(all)
}

fn middle<'a>(x: &[&'a str], y: &[&'a str], out: &mut Vec<Line<'a>>) {
    if x.len().saturating_mul(y.len()) > CELLS_MAX {
        out.extend(x.iter().map(|line| Line::Gone(line)));
        out.extend(y.iter().map(|line| Line::New(line)));
        return;
    }
    // The longest common part from each pair of places on.
    let wide = y.len() + 1;
    let mut common = vec![0_u32; (x.len() + 1) * wide];
    for i in (0..x.len()).rev() {
        for j in (0..y.len()).rev() {
            common[i * wide + j] = if x[i] == y[j] {
                common[(i + 1) * wide + j + 1] + 1
            } else {
                common[(i + 1) * wide + j].max(common[i * wide + j + 1])
            };
        }
    }
    let (mut i, mut j) = (0, 0);
    while i < x.len() || j < y.len() {
        if i < x.len() && j < y.len() && x[i] == y[j] {
            out.push(Line::Same(x[i]));
            (i, j) = (i + 1, j + 1);
        } else if i < x.len() && (j == y.len() || common[(i + 1) * wide + j] >= common[i * wide + j + 1]) {
            out.push(Line::Gone(x[i]));
            i += 1;
        } else {
            out.push(Line::New(y[j]));
            j += 1;
        }
    }
}

/// Leaves out what is far from any difference.
fn around(all: Vec<Line<'_>>) -> Vec<Line<'_>> {
    let differs: Vec<bool> = all.iter().map(|line| !matches!(line, Line::Same(_))).collect();
    let near = |at: usize| {
        let end = (at + AROUND + 1).min(differs.len());
        differs[at.saturating_sub(AROUND)..end].contains(&true)
    };
    let mut out = Vec::new();
    for (at, line) in all.into_iter().enumerate() {
        if near(at) {
            out.push(line);
        } else if let Some(Line::Skipped(count)) = out.last_mut() {
            *count += 1;
        } else {
            out.push(Line::Skipped(1));
        }
    }
    out
}

/// A difference as text: `+`, `-`, or a space before each line.
pub fn text(before: &str, after: &str) -> Vec<String> {
    lines(before, after)
        .into_iter()
        .map(|line| match line {
            Line::Same(text) => format!("  {text}"),
            Line::Gone(text) => format!("- {text}"),
            Line::New(text) => format!("+ {text}"),
            Line::Skipped(1) => "  (1 line)".into(),
            Line::Skipped(count) => format!("  ({count} lines)"),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn only_what_differs_is_told_with_what_is_around_it() {
        assert!(text("a\nb", "a\nb\n").is_empty());
        let before = "1\n2\n3\n4\n5\n6\n7\n8\n9\n";
        let after = before.replace('5', "five");
        assert_eq!(
            text(before, &after),
            ["  (2 lines)", "  3", "  4", "- 5", "+ five", "  6", "  7", "  (2 lines)"]
        );
    }

    proptest! {
        #[test]
        fn both_texts_are_in_the_difference(a in prop::collection::vec("[ab]{0,1}", 0..12), b in prop::collection::vec("[ab]{0,1}", 0..12)) {
            let (x, y): (Vec<&str>, Vec<&str>) = (a.iter().map(String::as_str).collect(), b.iter().map(String::as_str).collect());
            let mut out = Vec::new();
            middle(&x, &y, &mut out);
            let first: Vec<&str> = out.iter().filter_map(|line| match line { Line::Same(t) | Line::Gone(t) => Some(*t), _ => None }).collect();
            let second: Vec<&str> = out.iter().filter_map(|line| match line { Line::Same(t) | Line::New(t) => Some(*t), _ => None }).collect();
            prop_assert_eq!((first, second), (x, y));
        }
    }
}
