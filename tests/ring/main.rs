//! The ring end to end: a real server, and clients that keep the rules, break them, or die.

mod answers;
mod fair;
mod hostile;
mod killed;
mod raw;
mod server;
