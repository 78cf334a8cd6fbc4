//! Colours and marks by role, from TOML. State is never told by colour alone: every role has a mark as well.
//!
//! Shipped themes are compiled in; a file `themes/<name>.toml` in the configuration directory comes before
//! them. `CONTINUUM_THEME` chooses. `NO_COLOR` takes all colours and leaves bold and reverse.

use ratatui::style::{Color, Modifier, Style};
use serde::Deserialize;
use std::collections::BTreeMap;

const SHIPPED: [(&str, &str); 5] = [
    ("default", include_str!("../../../themes/default.toml")),
    ("light", include_str!("../../../themes/light.toml")),
    ("high-contrast", include_str!("../../../themes/high-contrast.toml")),
    ("deuteranopia", include_str!("../../../themes/deuteranopia.toml")),
    ("mono", include_str!("../../../themes/mono.toml")),
];

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    roles: BTreeMap<String, Role>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Role {
    fg: Option<String>,
    bg: Option<String>,
    #[serde(default)]
    bold: bool,
    #[serde(default)]
    reverse: bool,
}

/// Styles by role.
#[derive(Debug, Clone, Default)]
pub struct Theme {
    /// What it is called.
    pub name: String,
    roles: BTreeMap<String, Style>,
}

impl Theme {
    /// The one that the environment asks for.
    pub fn load(colour: bool) -> Self {
        let name = std::env::var("CONTINUUM_THEME").unwrap_or_else(|_| "default".into());
        let colour = colour && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
        Self::named(&name, colour).or_else(|| Self::named("default", colour)).unwrap_or_default()
    }

    /// A theme by name; `None` where there is none or its file is wrong.
    pub fn named(name: &str, colour: bool) -> Option<Self> {
        let own = crate::profile::config_dir()
            .filter(|_| name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-'))
            .and_then(|dir| std::fs::read_to_string(dir.join("themes").join(format!("{name}.toml"))).ok());
        let shipped = || SHIPPED.iter().find(|(known, _)| *known == name).map(|(_, text)| (*text).to_owned());
        let file: File = toml::from_str(&own.or_else(shipped)?).ok()?;
        let style = |role: &Role| {
            let colour_of = |text: &Option<String>| {
                text.as_ref().filter(|_| colour).and_then(|text| text.parse::<Color>().ok())
            };
            let mut style = Style { fg: colour_of(&role.fg), bg: colour_of(&role.bg), ..Style::default() };
            if role.bold {
                style = style.add_modifier(Modifier::BOLD);
            }
            if role.reverse {
                style = style.add_modifier(Modifier::REVERSED);
            }
            style
        };
        let roles = file.roles.iter().map(|(name, role)| (name.clone(), style(role))).collect();
        Some(Self { name: name.to_owned(), roles })
    }

    /// The names of all shipped themes.
    pub fn names() -> Vec<&'static str> {
        SHIPPED.iter().map(|(name, _)| *name).collect()
    }

    /// The style of a role; plain where the theme says nothing.
    pub fn style(&self, role: &str) -> Style {
        self.roles.get(role).copied().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_shipped_theme_is_whole_and_without_colour_keeps_its_marks() {
        for name in Theme::names() {
            let theme = Theme::named(name, true).unwrap_or_else(|| panic!("{name}"));
            for role in ["ok", "warn", "fail", "muted", "title", "selection", "danger", "key", "stale"] {
                assert!(theme.roles.contains_key(role), "{name} lacks {role}");
            }
            let plain = Theme::named(name, false).unwrap();
            assert!(plain.roles.values().all(|style| style.fg.is_none() && style.bg.is_none()));
            assert!(
                plain.style("selection").add_modifier.contains(Modifier::REVERSED),
                "{name}: the selection must stay visible"
            );
        }
    }
}
