//! The operator's own looks and keys, in the configuration directory; read again when a file changes.
//!
//! ```text
//! keys.toml            the key map (see `cmd::keys`)
//! themes/NAME.toml     themes of one's own (see `themes/default.toml`)
//! ```
//!
//! What is wrong in a file is told and left out; whoever had something keeps it.

use super::cmd::keys::Keys;
use super::theme::{Depth, Library, Theme};
use std::path::PathBuf;
use std::time::SystemTime;

/// The largest key map that is read.
const KEYS_BYTES_MAX: u64 = 64 << 10;

/// Where they are, and what they were when they were read last.
pub struct Settings {
    dir: Option<PathBuf>,
    seen: Seen,
    library: Library,
    depth: Depth,
    /// The theme in use.
    pub theme: Theme,
}

type Seen = Vec<(PathBuf, Option<SystemTime>, u64)>;

/// What a look at the files came to.
#[derive(Debug, Default)]
pub struct Change {
    /// The key map, where it changed.
    pub keys: Option<Keys>,
    /// Whether themes changed.
    pub themes: bool,
    /// What is wrong.
    pub wrong: Vec<String>,
}

impl Settings {
    /// Reads them for the first time.
    pub fn open(dir: Option<PathBuf>, depth: Depth, wanted: Option<&str>, ascii: bool) -> (Self, Change) {
        let (library, mut wrong) = Library::open(dir.as_ref().map(|dir| dir.join("themes")).as_deref());
        let fallback = || library.theme("default", depth, ascii).unwrap_or_else(|_| Theme::plain(ascii));
        let theme = match library.theme(wanted.unwrap_or("default"), depth, ascii) {
            Ok(theme) => theme,
            Err(why) => {
                wrong.push(why);
                fallback()
            }
        };
        let mut settings = Self { dir, seen: Vec::new(), library, depth, theme };
        settings.seen = settings.look();
        let (keys, more) = settings.keys();
        wrong.extend(more);
        (settings, Change { keys, themes: true, wrong })
    }

    fn look(&self) -> Seen {
        let Some(dir) = &self.dir else { return Vec::new() };
        let themes =
            std::fs::read_dir(dir.join("themes")).into_iter().flatten().flatten().map(|entry| entry.path());
        let mut seen: Seen = themes
            .chain([dir.join("keys.toml")])
            .filter_map(|path| {
                let about = std::fs::metadata(&path).ok()?;
                Some((path, about.modified().ok(), about.len()))
            })
            .collect();
        seen.sort();
        seen
    }

    fn keys(&self) -> (Option<Keys>, Vec<String>) {
        let Some(path) = self.dir.as_ref().map(|dir| dir.join("keys.toml")) else {
            return (None, Vec::new());
        };
        match std::fs::metadata(&path) {
            Ok(about) if about.len() > KEYS_BYTES_MAX => {
                return (None, vec!["keys.toml: larger than 64 KiB".into()]);
            }
            Ok(_) => {}
            Err(_) => return (Some(Keys::default()), Vec::new()),
        }
        match std::fs::read_to_string(&path) {
            Ok(text) => {
                let (keys, wrong) = Keys::with_file(&text);
                (Some(keys), wrong.into_iter().map(|why| format!("keys.toml: {why}")).collect())
            }
            Err(error) => (None, vec![format!("keys.toml: {error}")]),
        }
    }

    /// Looks whether a file changed, and reads it again. Cheap where none did.
    pub fn look_again(&mut self) -> Option<Change> {
        let seen = self.look();
        if seen == self.seen {
            return None;
        }
        self.seen = seen;
        let (library, mut wrong) = Library::open(self.dir.as_ref().map(|dir| dir.join("themes")).as_deref());
        self.library = library;
        if let Err(why) = self.choose(&self.theme.name.clone(), self.theme.ascii) {
            wrong.push(why);
        }
        let (keys, more) = self.keys();
        wrong.extend(more);
        Some(Change { keys, themes: true, wrong })
    }

    /// Names of all themes.
    pub fn names(&self) -> Vec<String> {
        self.library.names()
    }

    /// Uses another theme. Where that is wrong the old one stays.
    pub fn choose(&mut self, name: &str, ascii: bool) -> Result<(), String> {
        self.theme = self.library.theme(name, self.depth, ascii)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tui::cmd::keys::Chord;
    use crate::tui::cmd::{Action, Context};

    #[test]
    fn files_are_read_again_and_mistakes_change_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let path = Some(dir.path().to_owned());
        let (mut settings, change) = Settings::open(path, Depth::Sixteen, Some("mine"), false);
        assert_eq!(change.wrong, ["there is no theme mine"]);
        assert_eq!(settings.theme.name, "default");
        assert!(settings.look_again().is_none(), "nothing changed");

        std::fs::create_dir(dir.path().join("themes")).unwrap();
        std::fs::write(dir.path().join("themes/mine.toml"), "name = \"mine\"\ninherits = \"default\"\n")
            .unwrap();
        std::fs::write(
            dir.path().join("keys.toml"),
            "[global]\n\"ctrl+f\" = \"filter\"\n\"x\" = \"order.failover\"\n",
        )
        .unwrap();
        let change = settings.look_again().expect("a change");
        let keys = change.keys.expect("keys");
        assert_eq!(keys.action(&[Context::Global], Chord::ctrl('f')), Some(Action::Filter));
        assert_eq!(change.wrong.len(), 1, "{:?}", change.wrong);
        assert!(settings.names().contains(&"mine".to_owned()));
        settings.choose("mine", false).unwrap();

        std::fs::write(dir.path().join("themes/mine.toml"), "name = \"mine\"\nnonsense = 1\nmore = 2\n")
            .unwrap();
        let change = settings.look_again().expect("a change");
        assert!(change.wrong[0].contains("theme mine, line"), "{:?}", change.wrong);
        assert_eq!(settings.theme.name, "mine", "the one in use stays");
    }
}
