//! Themes: TOML files that give every role a style and every mark a glyph.
//!
//! The format is told at the head of `themes/default.toml`. Five are compiled in; files of the same name in
//! the operator's own folder come before them. A theme fills what it leaves open from the one it inherits,
//! and a role without a style from its parent role.
//!
//! `NO_COLOR` is answered here: every colour becomes the terminal's own, and modifiers stay, so that a
//! selection is still reversed. (The library's own answer resets those, too.)

use super::core::tone::{Mark, Role};
use ratatui::style::{Color, Modifier, Style};
use serde::Deserialize;
use std::collections::HashMap;
use std::path::Path;

/// The themes that are always there.
pub const BUILT_IN: [(&str, &str); 5] = [
    ("default", include_str!("../../../themes/default.toml")),
    ("light", include_str!("../../../themes/light.toml")),
    ("high-contrast", include_str!("../../../themes/high-contrast.toml")),
    ("deuteranopia", include_str!("../../../themes/deuteranopia.toml")),
    ("mono", include_str!("../../../themes/mono.toml")),
];
/// A theme may inherit through so many others.
const ANCESTORS_MAX: usize = 8;
/// The largest file that is read as a theme.
const FILE_BYTES_MAX: u64 = 64 << 10;

/// How many colours the terminal shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Depth {
    /// None: `NO_COLOR`, or a terminal without.
    None,
    /// Sixteen.
    Sixteen,
    /// 256.
    Indexed,
    /// Sixteen million.
    True,
}

impl Depth {
    /// What the environment tells: `NO_COLOR`, then `COLORTERM`, then `TERM`.
    pub fn of_environment(get: impl Fn(&str) -> Option<String>) -> Self {
        let term = get("TERM").unwrap_or_default();
        if get("NO_COLOR").is_some_and(|value| !value.is_empty()) || term == "dumb" {
            return Self::None;
        }
        let colorterm = get("COLORTERM").unwrap_or_default();
        if colorterm.contains("truecolor") || colorterm.contains("24bit") || term.ends_with("-direct") {
            return Self::True;
        }
        if term.contains("256color") { Self::Indexed } else { Self::Sixteen }
    }
}

/// What a theme came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Theme {
    /// Its name.
    pub name: String,
    /// Marks as ASCII.
    pub ascii: bool,
    styles: HashMap<Role, Style>,
    marks: HashMap<Mark, (char, char)>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    name: String,
    inherits: Option<String>,
    #[serde(default)]
    palette: HashMap<String, Paint>,
    #[serde(default)]
    roles: HashMap<String, RoleStyle>,
    #[serde(default)]
    marks: HashMap<String, Glyphs>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(untagged)]
enum Paint {
    One(String),
    Each { rgb: Option<String>, c256: Option<u8>, c16: Option<String> },
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct RoleStyle {
    fg: Option<String>,
    bg: Option<String>,
    #[serde(default)]
    modifiers: Vec<String>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct Glyphs {
    glyph: Option<char>,
    ascii: Option<char>,
}

/// Where theme files are looked for, and what they hold.
#[derive(Debug, Clone, Default)]
pub struct Library {
    own: Vec<(String, String)>,
}

impl Library {
    /// The built-in themes and those in a folder. What cannot be read is told, and left out.
    pub fn open(folder: Option<&Path>) -> (Self, Vec<String>) {
        let mut own = Vec::new();
        let mut wrong = Vec::new();
        let entries = folder.and_then(|folder| std::fs::read_dir(folder).ok());
        for path in entries.into_iter().flatten().flatten().map(|entry| entry.path()) {
            if path.extension().is_none_or(|ending| ending != "toml") {
                continue;
            }
            let Some(name) = path.file_stem().and_then(|stem| stem.to_str()) else { continue };
            match std::fs::metadata(&path) {
                Ok(about) if about.len() > FILE_BYTES_MAX => {
                    wrong.push(format!("theme {name}: larger than 64 KiB"));
                    continue;
                }
                _ => {}
            }
            match std::fs::read_to_string(&path) {
                Ok(text) => own.push((name.to_owned(), text)),
                Err(error) => wrong.push(format!("theme {name}: {error}")),
            }
        }
        own.sort();
        (Self { own }, wrong)
    }

    /// Names of all themes.
    pub fn names(&self) -> Vec<String> {
        let mut names: Vec<String> = BUILT_IN.iter().map(|(name, _)| (*name).to_owned()).collect();
        names.extend(
            self.own
                .iter()
                .map(|(name, _)| name.clone())
                .filter(|name| !names.contains(name))
                .collect::<Vec<_>>(),
        );
        names
    }

    fn text(&self, name: &str) -> Option<&str> {
        let own = self.own.iter().find(|(known, _)| known == name).map(|(_, text)| text.as_str());
        own.or_else(|| BUILT_IN.iter().find(|(known, _)| *known == name).map(|(_, text)| *text))
    }

    /// A theme, ready for a terminal of this depth.
    ///
    /// Errors: in words, with the theme's name and the line; whoever had a theme keeps it.
    pub fn theme(&self, name: &str, depth: Depth, ascii: bool) -> Result<Theme, String> {
        let mut chain: Vec<File> = Vec::new();
        let mut next = Some(name.to_owned());
        while let Some(wanted) = next.take() {
            // A theme of one's own may be called like a built-in one and inherit from that.
            let from_built_in = chain.last().is_some_and(|child| child.name == wanted);
            let text = if from_built_in {
                BUILT_IN.iter().find(|(known, _)| *known == wanted).map(|(_, text)| *text)
            } else {
                self.text(&wanted)
            };
            let text = text.ok_or_else(|| format!("there is no theme {wanted}"))?;
            let file: File = toml::from_str(text).map_err(|error| {
                let line = error
                    .span()
                    .map_or(1, |span| text[..span.start.min(text.len())].matches('\n').count() + 1);
                format!("theme {wanted}, line {line}: {}", error.message())
            })?;
            next.clone_from(&file.inherits);
            chain.push(file);
            if chain.len() > ANCESTORS_MAX {
                return Err(format!(
                    "theme {name} inherits in a circle, or through more than {ANCESTORS_MAX} others"
                ));
            }
        }
        chain.reverse();
        build(name, &chain, depth, ascii)
    }
}

fn build(name: &str, chain: &[File], depth: Depth, ascii: bool) -> Result<Theme, String> {
    let mut palette: HashMap<&str, &Paint> = HashMap::new();
    let mut roles: HashMap<&str, &RoleStyle> = HashMap::new();
    let mut marks: HashMap<Mark, (char, char)> =
        Mark::ALL.iter().map(|(mark, _, glyph, plain)| (*mark, (*glyph, *plain))).collect();
    for file in chain {
        palette.extend(file.palette.iter().map(|(name, paint)| (name.as_str(), paint)));
        roles.extend(file.roles.iter().map(|(name, style)| (name.as_str(), style)));
        for (mark_name, glyphs) in &file.marks {
            let known = Mark::ALL.iter().find(|(_, known, ..)| known == mark_name);
            let (mark, ..) =
                known.ok_or_else(|| format!("theme {}: there is no mark {mark_name}", file.name))?;
            let before = marks.get(mark).copied().unwrap_or(('?', '?'));
            let glyph = glyphs.glyph.unwrap_or(before.0);
            let plain = glyphs.ascii.unwrap_or(before.1);
            let one_cell =
                unicode_width::UnicodeWidthChar::width(glyph) == Some(1) && plain.is_ascii_graphic();
            if !one_cell || continuum_model::untrusted::is_dangerous(glyph) {
                return Err(format!(
                    "theme {}: mark {mark_name} needs a glyph one cell wide, and one of ASCII",
                    file.name
                ));
            }
            marks.insert(*mark, (glyph, plain));
        }
    }
    if let Some(unknown) = roles.keys().find(|name| !Role::ALL.iter().any(|(_, known)| known == *name)) {
        return Err(format!("theme {name}: there is no role {unknown}"));
    }
    let mut styles = HashMap::new();
    for (role, _) in Role::ALL {
        let mut at = Some(role);
        let found = loop {
            match at {
                Some(role) => match roles.get(role_name(role)) {
                    Some(style) => break Some(*style),
                    None => at = role.parent(),
                },
                None => break None,
            }
        };
        let style = found.map_or(Ok(Style::new()), |style| resolve(style, &palette, depth))?;
        styles.insert(role, style);
    }
    Ok(Theme { name: name.to_owned(), ascii, styles, marks })
}

fn role_name(role: Role) -> &'static str {
    Role::ALL.iter().find(|(known, _)| *known == role).map_or("text", |(_, name)| name)
}

fn resolve(style: &RoleStyle, palette: &HashMap<&str, &Paint>, depth: Depth) -> Result<Style, String> {
    let mut out = Style::new();
    if let Some(name) = &style.fg {
        out = out.fg(colour(name, palette, depth)?);
    }
    if let Some(name) = &style.bg {
        out = out.bg(colour(name, palette, depth)?);
    }
    for modifier in &style.modifiers {
        out = out.add_modifier(match modifier.as_str() {
            "bold" => Modifier::BOLD,
            "dim" => Modifier::DIM,
            "italic" => Modifier::ITALIC,
            "underlined" => Modifier::UNDERLINED,
            "reversed" => Modifier::REVERSED,
            other => return Err(format!("there is no modifier {other} (blinking is left out on purpose)")),
        });
    }
    // Without colours a background would be lost: reversed tells the same.
    if depth == Depth::None && style.bg.is_some() {
        out = out.add_modifier(Modifier::REVERSED);
    }
    Ok(out)
}

fn colour(name: &str, palette: &HashMap<&str, &Paint>, depth: Depth) -> Result<Color, String> {
    let full = match palette.get(name) {
        Some(Paint::One(value)) => parse(value).ok_or_else(|| format!("{value} is no colour"))?,
        Some(Paint::Each { rgb, c256, c16 }) => {
            let named = match (depth, rgb, c256, c16) {
                (Depth::Sixteen | Depth::None, _, _, Some(c16)) => parse(c16),
                (Depth::Indexed, _, Some(index), _) => Some(Color::Indexed(*index)),
                (_, Some(rgb), _, _) => parse(rgb),
                (_, None, Some(index), _) => Some(Color::Indexed(*index)),
                (_, None, None, Some(c16)) => parse(c16),
                (_, None, None, None) => None,
            };
            named.ok_or_else(|| format!("palette entry {name} holds no colour"))?
        }
        None => parse(name).ok_or_else(|| format!("there is no colour {name} in the palette"))?,
    };
    Ok(lower(full, depth))
}

const SIXTEEN: [(&str, Color, (u8, u8, u8)); 16] = [
    ("black", Color::Black, (0, 0, 0)),
    ("red", Color::Red, (205, 0, 0)),
    ("green", Color::Green, (0, 205, 0)),
    ("yellow", Color::Yellow, (205, 205, 0)),
    ("blue", Color::Blue, (0, 0, 238)),
    ("magenta", Color::Magenta, (205, 0, 205)),
    ("cyan", Color::Cyan, (0, 205, 205)),
    ("gray", Color::Gray, (229, 229, 229)),
    ("dark-gray", Color::DarkGray, (127, 127, 127)),
    ("bright-red", Color::LightRed, (255, 0, 0)),
    ("bright-green", Color::LightGreen, (0, 255, 0)),
    ("bright-yellow", Color::LightYellow, (255, 255, 0)),
    ("bright-blue", Color::LightBlue, (92, 92, 255)),
    ("bright-magenta", Color::LightMagenta, (255, 0, 255)),
    ("bright-cyan", Color::LightCyan, (0, 255, 255)),
    ("white", Color::White, (255, 255, 255)),
];

fn parse(value: &str) -> Option<Color> {
    if value == "default" {
        return Some(Color::Reset);
    }
    if let Some((_, colour, _)) = SIXTEEN.iter().find(|(name, ..)| *name == value) {
        return Some(*colour);
    }
    if let Some(hex) = value.strip_prefix('#').filter(|hex| hex.len() == 6 && hex.is_ascii()) {
        let part = |at: usize| u8::from_str_radix(&hex[at..at + 2], 16).ok();
        return Some(Color::Rgb(part(0)?, part(2)?, part(4)?));
    }
    value.parse().ok().map(Color::Indexed)
}

/// A colour as a terminal of this depth shows it best.
fn lower(colour: Color, depth: Depth) -> Color {
    match (depth, colour) {
        (Depth::None, _) => Color::Reset,
        (Depth::Indexed, Color::Rgb(r, g, b)) => Color::Indexed(to_cube(r, g, b)),
        (Depth::Sixteen, Color::Rgb(r, g, b)) => to_sixteen(r, g, b),
        (Depth::Sixteen, Color::Indexed(index)) => {
            let (r, g, b) = of_index(index);
            to_sixteen(r, g, b)
        }
        (_, colour) => colour,
    }
}

const CUBE: [u8; 6] = [0, 95, 135, 175, 215, 255];

fn nearest_cube(value: u8) -> (u8, u8) {
    let mut best = (0, u8::MAX);
    for (at, level) in (0_u8..).zip(CUBE) {
        let off = value.abs_diff(level);
        if off < best.1 {
            best = (at, off);
        }
    }
    (best.0, CUBE.get(usize::from(best.0)).copied().unwrap_or(0))
}

fn distance(a: (u8, u8, u8), b: (u8, u8, u8)) -> u32 {
    let off = |a: u8, b: u8| u32::from(a.abs_diff(b)).pow(2);
    off(a.0, b.0) + off(a.1, b.1) + off(a.2, b.2)
}

fn to_cube(r: u8, g: u8, b: u8) -> u8 {
    let ((ri, rv), (gi, gv), (bi, bv)) = (nearest_cube(r), nearest_cube(g), nearest_cube(b));
    let mean = (u16::from(r) + u16::from(g) + u16::from(b)) / 3;
    let step = u8::try_from((mean.saturating_sub(3) / 10).min(23)).unwrap_or(23);
    let level = 8 + 10 * step;
    if distance((r, g, b), (level, level, level)) < distance((r, g, b), (rv, gv, bv)) {
        232 + step
    } else {
        16 + 36 * ri + 6 * gi + bi
    }
}

fn of_index(index: u8) -> (u8, u8, u8) {
    match index {
        0..=15 => SIXTEEN.get(usize::from(index)).map_or((0, 0, 0), |(_, _, rgb)| *rgb),
        16..=231 => {
            let at = index - 16;
            let level = |n: u8| CUBE.get(usize::from(n)).copied().unwrap_or(0);
            (level(at / 36), level(at / 6 % 6), level(at % 6))
        }
        232..=255 => {
            let level = 8 + 10 * (index - 232);
            (level, level, level)
        }
    }
}

fn to_sixteen(r: u8, g: u8, b: u8) -> Color {
    SIXTEEN
        .iter()
        .min_by_key(|(_, _, rgb)| distance((r, g, b), *rgb))
        .map_or(Color::Reset, |(_, colour, _)| *colour)
}

impl Theme {
    /// No colours, no styles: for when not even the built-in ones can be read.
    pub fn plain(ascii: bool) -> Self {
        Self { name: "plain".into(), ascii, styles: HashMap::new(), marks: HashMap::new() }
    }
    /// The style of a role.
    pub fn style(&self, role: Role) -> Style {
        self.styles.get(&role).copied().unwrap_or_default()
    }
    /// The glyph of a mark.
    pub fn mark(&self, mark: Mark) -> char {
        let (glyph, plain) = self.marks.get(&mark).copied().unwrap_or(('?', '?'));
        if self.ascii { plain } else { glyph }
    }
    /// What tells that a text was cut.
    pub const fn ellipsis(&self) -> char {
        if self.ascii { '~' } else { '…' }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn built_in(name: &str, depth: Depth) -> Theme {
        Library::default().theme(name, depth, false).unwrap()
    }

    #[test]
    fn every_theme_is_whole_in_every_depth() {
        for (name, _) in BUILT_IN {
            for depth in [Depth::None, Depth::Sixteen, Depth::Indexed, Depth::True] {
                let theme = built_in(name, depth);
                assert_eq!(theme.styles.len(), Role::ALL.len());
                for (role, _) in Role::ALL {
                    let style = theme.style(role);
                    for colour in [style.fg, style.bg].into_iter().flatten() {
                        let fits = match depth {
                            Depth::None => colour == Color::Reset,
                            Depth::Sixteen => !matches!(colour, Color::Rgb(..) | Color::Indexed(_)),
                            Depth::Indexed => !matches!(colour, Color::Rgb(..)),
                            Depth::True => true,
                        };
                        assert!(fits, "{name} {role:?} {colour:?} at {depth:?}");
                    }
                }
                let state = |role| theme.style(role);
                assert_ne!(state(Role::Selection), state(Role::Text), "a selection is seen without colour");
                assert_ne!(state(Role::Fail), state(Role::Text));
            }
        }
        for (mark, _, glyph, plain) in Mark::ALL {
            assert_eq!(unicode_width::UnicodeWidthChar::width(glyph), Some(1), "{mark:?}");
            assert!(plain.is_ascii_graphic());
        }
    }

    #[test]
    fn a_small_theme_is_complete_and_a_wrong_one_is_told() {
        let library = |text: &str| Library { own: vec![("mine".into(), text.into())] };
        let theme = library("name = \"mine\"\ninherits = \"default\"\n[palette]\nbad = \"#ff00ff\"\n[marks]\nok = { glyph = \"■\" }\n")
            .theme("mine", Depth::True, false)
            .unwrap();
        assert_eq!(theme.style(Role::Fail).fg, Some(Color::Rgb(255, 0, 255)));
        assert_eq!(theme.style(Role::Danger), theme.style(Role::Fail), "a role falls back to its parent");
        assert_eq!(theme.mark(Mark::Ok), '■');
        for (text, part) in [
            ("name = \"mine\"\n[roles]\nok = { fg = \"nope\" }\n", "no colour nope"),
            ("name = \"mine\"\n[roles]\nnope = {}\n", "no role nope"),
            ("name = \"mine\"\n[roles]\nok = { modifiers = [\"blink\"] }\n", "blink"),
            ("name = \"mine\"\n[marks]\nok = { glyph = \"北\" }\n", "one cell"),
            ("name = \"mine\"\ninherits = \"nobody\"\n", "no theme nobody"),
            ("name = \"mine\"\ncolour = 1\n", "line 2"),
        ] {
            let error = library(text).theme("mine", Depth::True, false).unwrap_err();
            assert!(error.contains(part), "{error}");
        }
        let circle = Library {
            own: vec![
                ("a".into(), "name = \"a\"\ninherits = \"b\"\n".into()),
                ("b".into(), "name = \"b\"\ninherits = \"a\"\n".into()),
            ],
        };
        assert!(circle.theme("a", Depth::True, false).unwrap_err().contains("circle"));
    }

    #[test]
    fn depth_comes_from_the_environment() {
        let depth = |pairs: &[(&str, &str)]| {
            Depth::of_environment(|name| {
                pairs.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).into())
            })
        };
        assert_eq!(depth(&[("TERM", "xterm-256color"), ("COLORTERM", "truecolor")]), Depth::True);
        assert_eq!(depth(&[("TERM", "screen-256color")]), Depth::Indexed);
        assert_eq!(depth(&[("TERM", "linux")]), Depth::Sixteen);
        assert_eq!(depth(&[("TERM", "dumb")]), Depth::None);
        assert_eq!(depth(&[("TERM", "xterm-256color"), ("NO_COLOR", "1")]), Depth::None);
        assert_eq!(depth(&[("TERM", "xterm-256color"), ("NO_COLOR", "")]), Depth::Indexed);
    }

    #[test]
    fn colours_are_lowered_to_the_nearest() {
        assert_eq!(lower(Color::Rgb(255, 0, 0), Depth::Indexed), Color::Indexed(196));
        assert_eq!(lower(Color::Rgb(128, 128, 128), Depth::Indexed), Color::Indexed(244));
        assert_eq!(lower(Color::Rgb(250, 5, 5), Depth::Sixteen), Color::LightRed);
        assert_eq!(lower(Color::Indexed(196), Depth::Sixteen), Color::LightRed);
    }
}
