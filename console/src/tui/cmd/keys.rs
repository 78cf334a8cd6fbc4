//! The live key map: the registry's keys, changed by the operator's `keys.toml`.
//!
//! ```text
//! [global]            contexts: global, table, machine, timeline, run, menu
//! "ctrl+f" = "filter" a key = an action's id
//! "x" = "disabled"    takes a key away
//! ```
//!
//! Keys: one character, or `enter esc tab space backspace delete insert up down left right pageup pagedown
//! home end f1`…`f12`, with `ctrl+`, `alt+`, `shift+` before it. Invariant: no single letter outside the
//! action menu leads to an order that can lose something, whatever the file says.

use super::{Action, Context, REGISTRY, Risk, entry_of, named};
use std::collections::HashMap;
use std::fmt;

/// Which key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Code {
    /// A character; space, too.
    Char(char),
    /// Enter.
    Enter,
    /// Escape.
    Esc,
    /// Tab.
    Tab,
    /// Shift and Tab.
    BackTab,
    /// Backspace.
    Backspace,
    /// Delete.
    Delete,
    /// Insert.
    Insert,
    /// Up.
    Up,
    /// Down.
    Down,
    /// Left.
    Left,
    /// Right.
    Right,
    /// Page up.
    PageUp,
    /// Page down.
    PageDown,
    /// Home.
    Home,
    /// End.
    End,
    /// A function key.
    F(u8),
}

/// A key with what was held beside it. Shift is part of a character.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Chord {
    /// Which key.
    pub code: Code,
    /// With Ctrl.
    pub ctrl: bool,
    /// With Alt.
    pub alt: bool,
}

impl Chord {
    /// A key alone.
    pub const fn plain(code: Code) -> Self {
        Self { code, ctrl: false, alt: false }
    }
    /// A character alone.
    pub const fn char(c: char) -> Self {
        Self::plain(Code::Char(c))
    }
    /// A character with Ctrl.
    pub const fn ctrl(c: char) -> Self {
        Self { code: Code::Char(c), ctrl: true, alt: false }
    }
    /// The character that this key types.
    pub const fn typed(self) -> Option<char> {
        match self.code {
            Code::Char(c) if !self.ctrl && !self.alt => Some(c),
            _ => None,
        }
    }
}

const NAMES: [(&str, Code); 17] = [
    ("enter", Code::Enter),
    ("esc", Code::Esc),
    ("shift+tab", Code::BackTab),
    ("tab", Code::Tab),
    ("space", Code::Char(' ')),
    ("backspace", Code::Backspace),
    ("delete", Code::Delete),
    ("insert", Code::Insert),
    ("up", Code::Up),
    ("down", Code::Down),
    ("left", Code::Left),
    ("right", Code::Right),
    ("pageup", Code::PageUp),
    ("pagedown", Code::PageDown),
    ("home", Code::Home),
    ("end", Code::End),
    ("plus", Code::Char('+')),
];

impl fmt::Display for Chord {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.ctrl {
            f.write_str("ctrl+")?;
        }
        if self.alt {
            f.write_str("alt+")?;
        }
        match self.code {
            Code::F(n) => write!(f, "f{n}"),
            Code::Char('+') => f.write_str("+"),
            code => match NAMES.iter().find(|(_, known)| *known == code) {
                Some((name, _)) => f.write_str(name),
                None => match code {
                    Code::Char(c) => write!(f, "{c}"),
                    _ => Ok(()),
                },
            },
        }
    }
}

/// Reads a key's name.
pub fn parse(text: &str) -> Option<Chord> {
    let mut rest = text;
    let (mut ctrl, mut alt) = (false, false);
    loop {
        if let Some((_, code)) = NAMES.iter().find(|(name, _)| *name == rest) {
            return Some(Chord { code: *code, ctrl, alt });
        }
        if let Some(after) = rest.strip_prefix("ctrl+").filter(|after| !after.is_empty()) {
            (ctrl, rest) = (true, after);
        } else if let Some(after) = rest.strip_prefix("alt+").filter(|after| !after.is_empty()) {
            (alt, rest) = (true, after);
        } else {
            break;
        }
    }
    if let Some(n) =
        rest.strip_prefix('f').and_then(|n| n.parse::<u8>().ok()).filter(|n| (1..=12).contains(n))
    {
        return Some(Chord { code: Code::F(n), ctrl, alt });
    }
    let mut chars = rest.chars();
    match (chars.next(), chars.next()) {
        (Some(c), None) if !c.is_control() => Some(Chord { code: Code::Char(c), ctrl, alt }),
        _ => None,
    }
}

/// Which key does what, where.
#[derive(Debug, Clone)]
pub struct Keys {
    bound: HashMap<(Context, Chord), Action>,
    order: Vec<(Context, Chord, Action)>,
}

impl Default for Keys {
    fn default() -> Self {
        let mut keys = Self { bound: HashMap::new(), order: Vec::new() };
        for entry in REGISTRY {
            for (context, name) in entry.keys {
                if let Some(chord) = parse(name) {
                    keys.bind(*context, chord, entry.action);
                }
            }
        }
        keys
    }
}

impl Keys {
    /// The registry's keys, changed by a file. What is wrong is told, line by line, and left out; the rest
    /// holds.
    pub fn with_file(text: &str) -> (Self, Vec<String>) {
        let mut keys = Self::default();
        let mut wrong = Vec::new();
        let table: toml::Table = match toml::from_str(text) {
            Ok(table) => table,
            Err(error) => {
                let line = error
                    .span()
                    .map_or(1, |span| text[..span.start.min(text.len())].matches('\n').count() + 1);
                wrong.push(format!("line {line}: {}", error.message()));
                return (keys, wrong);
            }
        };
        for (section, content) in &table {
            let Some((context, _, _)) = Context::ALL.into_iter().find(|(_, name, _)| name == section) else {
                wrong.push(format!("[{section}] is no context; known are {}", contexts()));
                continue;
            };
            let Some(content) = content.as_table() else {
                wrong.push(format!("{section} must be a table"));
                continue;
            };
            for (key, action) in content {
                if let Err(why) = keys.change(context, key, action) {
                    wrong.push(format!("[{section}] \"{key}\": {why}"));
                }
            }
        }
        (keys, wrong)
    }

    fn change(&mut self, context: Context, key: &str, action: &toml::Value) -> Result<(), String> {
        let chord = parse(key).ok_or("no such key")?;
        let name = action.as_str().ok_or("the value must be the id of an action")?;
        if matches!(chord, Chord { code: Code::Esc, .. }) || chord == Chord::ctrl('c') {
            return Err("Esc always steps back, and Ctrl-C always leaves".into());
        }
        if name == "disabled" {
            self.bound.remove(&(context, chord));
            self.order.retain(|(at, bound, _)| (*at, *bound) != (context, chord));
            return Ok(());
        }
        let entry = named(name).ok_or_else(|| format!("there is no action {name}; see `?`"))?;
        let letter = chord.typed().is_some();
        if entry.risk == Risk::Danger && letter && context != Context::Menu {
            return Err(format!("{name} can lose data, so no single letter may begin it"));
        }
        self.bind(context, chord, entry.action);
        Ok(())
    }

    fn bind(&mut self, context: Context, chord: Chord, action: Action) {
        self.order.retain(|(at, bound, _)| (*at, *bound) != (context, chord));
        self.bound.insert((context, chord), action);
        self.order.push((context, chord, action));
    }

    /// What a key does; the contexts are asked in turn.
    pub fn action(&self, contexts: &[Context], chord: Chord) -> Option<Action> {
        contexts.iter().find_map(|context| self.bound.get(&(*context, chord)).copied())
    }

    /// The keys of an action in these contexts, as they are spelled.
    pub fn of(&self, action: Action, contexts: &[Context]) -> Vec<String> {
        self.order
            .iter()
            .filter(|(context, chord, bound)| {
                *bound == action
                    && contexts.contains(context)
                    && self.action(contexts, *chord) == Some(action)
            })
            .map(|(_, chord, _)| chord.to_string())
            .collect()
    }

    /// Everything that is bound in a context: the label and the keys, in the registry's order.
    pub fn in_context(&self, context: Context) -> Vec<(Action, Vec<String>)> {
        REGISTRY
            .iter()
            .filter_map(|entry| {
                let keys = self.of(entry.action, &[context]);
                (!keys.is_empty()).then_some((entry.action, keys))
            })
            .collect()
    }

    /// Whether some single letter outside the menu reaches an action that can lose something.
    pub fn has_unsafe_letter(&self) -> bool {
        self.order.iter().any(|(context, chord, action)| {
            *context != Context::Menu && chord.typed().is_some() && entry_of(*action).risk == Risk::Danger
        })
    }
}

fn contexts() -> String {
    Context::ALL.map(|(_, name, _)| name).join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_survive_their_spelling() {
        for text in [
            "a",
            "A",
            "+",
            "?",
            "ctrl+p",
            "alt+x",
            "enter",
            "esc",
            "space",
            "shift+tab",
            "f12",
            "pageup",
            "ctrl+left",
            "é",
        ] {
            assert_eq!(parse(text).map(|chord| chord.to_string()).as_deref(), Some(text));
        }
        for wrong in ["", "ctrl+", "ab", "f13", "\u{1b}", "hyper+x"] {
            assert_eq!(parse(wrong), None, "{wrong:?}");
        }
        for entry in REGISTRY {
            for (_, key) in entry.keys {
                assert!(parse(key).is_some(), "{key}");
            }
        }
    }

    #[test]
    fn no_key_of_ours_means_two_things() {
        let mut seen = std::collections::HashSet::new();
        for entry in REGISTRY {
            for (context, key) in entry.keys {
                assert!(seen.insert((*context, parse(key).unwrap())), "{key} in {context:?}");
            }
        }
        assert!(!Keys::default().has_unsafe_letter());
    }

    #[test]
    fn a_file_changes_keys_and_every_mistake_is_told() {
        let (keys, wrong) = Keys::with_file(
            "[global]\n\"ctrl+f\" = \"filter\"\n\"1\" = \"disabled\"\n\"f\" = \"order.failover\"\n\"x\" = \"nonsense\"\n\
             \"esc\" = \"quit\"\n[timeline]\n\"x\" = \"order.failover\"\n[nowhere]\n\"x\" = \"quit\"\n",
        );
        assert_eq!(keys.action(&[Context::Global], Chord::ctrl('f')), Some(Action::Filter));
        assert_eq!(keys.action(&[Context::Global], Chord::char('1')), None);
        assert_eq!(
            keys.action(&[Context::Global], Chord::char('f')),
            None,
            "a letter may not begin a failover"
        );
        assert_eq!(keys.action(&[Context::Global], Chord::plain(Code::Esc)), Some(Action::Back));
        assert!(!keys.has_unsafe_letter());
        assert_eq!(wrong.len(), 5, "{wrong:?}");
        let (keys, wrong) = Keys::with_file("[global\n");
        assert!(wrong[0].starts_with("line 1"), "{wrong:?}");
        assert_eq!(keys.action(&[Context::Global], Chord::char('1')), Some(Action::GoPulse));
        let (keys, wrong) = Keys::with_file(
            "[menu]\n\"!\" = \"order.failover\"\n[global]\n\"ctrl+x\" = \"order.failover\"\n",
        );
        assert!(wrong.is_empty(), "{wrong:?}");
        assert_eq!(keys.action(&[Context::Menu], Chord::char('!')), Some(Action::Failover));
    }

    #[test]
    fn the_inner_context_wins() {
        let keys = Keys::default();
        let timeline = [Context::Timeline, Context::Machine, Context::Global];
        assert_eq!(keys.action(&timeline, Chord::plain(Code::Right)), Some(Action::Later));
        assert_eq!(
            keys.action(&[Context::Machine, Context::Global], Chord::plain(Code::Right)),
            Some(Action::NextTab)
        );
    }
}
