//! The console's pictures, without a terminal: what is drawn of a state, at every size, whatever the state
//! holds; and which keys can order anything.

mod hostile;
mod keys;
mod picture;
mod pictures;
mod scale;
mod scene;
