//! An answer as a tree whose fields keep their order.
//!
//! Text is raw here: the writers make it harmless, each in its own way. What is not known is `Null`,
//! never a made-up zero.

use continuum_model::time::Timestamp;

/// A value of an answer.
#[derive(Debug, Clone, PartialEq)]
pub enum Doc {
    /// Not known, or not there.
    Null,
    /// Yes or no.
    Bool(bool),
    /// A count.
    Int(i128),
    /// A measure. Not a number or infinite is written as `null`.
    Float(f64),
    /// Text, raw.
    Text(String),
    /// Several.
    List(Vec<Doc>),
    /// Fields, in the order of the contract.
    Map(Vec<(&'static str, Doc)>),
}

impl Doc {
    /// A list made of whatever can be told.
    pub fn list<T>(items: &[T], tell: impl Fn(&T) -> Self) -> Self {
        Self::List(items.iter().map(tell).collect())
    }
    /// Text; `Null` where it is empty.
    pub fn text(text: &str) -> Self {
        if text.is_empty() { Self::Null } else { Self::Text(text.to_owned()) }
    }
    /// A moment, in microseconds of UTC; zero is what an unset field of the wire holds.
    pub fn time(micros: i64) -> Self {
        if micros == 0 { Self::Null } else { Self::Text(Timestamp::from_micros(micros).to_string()) }
    }
    /// A field of a map.
    pub fn get(&self, name: &str) -> Option<&Self> {
        match self {
            Self::Map(fields) => fields.iter().find(|(field, _)| *field == name).map(|(_, value)| value),
            Self::Null | Self::Bool(_) | Self::Int(_) | Self::Float(_) | Self::Text(_) | Self::List(_) => {
                None
            }
        }
    }
    /// The same with more fields at its end; a map only.
    #[must_use]
    pub fn with(mut self, more: Vec<(&'static str, Self)>) -> Self {
        if let Self::Map(fields) = &mut self {
            fields.extend(more);
        }
        self
    }
}

impl<T: Into<Doc>> From<Option<T>> for Doc {
    fn from(value: Option<T>) -> Self {
        value.map_or(Self::Null, Into::into)
    }
}
impl From<&str> for Doc {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}
impl From<String> for Doc {
    fn from(text: String) -> Self {
        Self::Text(text)
    }
}
impl From<bool> for Doc {
    fn from(value: bool) -> Self {
        Self::Bool(value)
    }
}
impl From<u32> for Doc {
    fn from(value: u32) -> Self {
        Self::Int(value.into())
    }
}
impl From<u64> for Doc {
    fn from(value: u64) -> Self {
        Self::Int(value.into())
    }
}
impl From<i64> for Doc {
    fn from(value: i64) -> Self {
        Self::Int(value.into())
    }
}
impl From<f64> for Doc {
    fn from(value: f64) -> Self {
        Self::Float(value)
    }
}
