//! What the console knows and how that changes: messages in, state and effects out.
//!
//! - [`state`]: everything that is known, in one place
//! - [`reduce`]: what a message makes of it; [`orders`]: how orders begin and what comes of them
//! - [`estate`], [`rows`], [`table`]: what the vault told, and as which rows it is shown
//! - [`form`]: policies and plans under edit
//! - [`timeline`], [`dialog`], [`palette`], [`mod@line`]: the parts with a life of their own
//! - [`layout`]: who gets how many lines; [`text`], [`tone`]: words, roles and marks; [`export`]
//!
//! Pure: no terminal, no network, no clock. Time comes in with the messages. Whatever is to be done outside
//! is an [`state::Effect`] that `app` carries out.

pub mod dialog;
pub mod estate;
pub mod export;
pub mod form;
pub mod layout;
pub mod line;
pub mod orders;
pub mod palette;
pub mod reduce;
pub mod rows;
pub mod state;
pub mod table;
pub mod text;
pub mod timeline;
pub mod tone;
