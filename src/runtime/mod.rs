//! The thread-per-core runtime: reactors, mailboxes, sockets, timers.
//!
//! A [`Reactor`](reactor) is one thread, one core, one event loop. State belongs to one reactor and
//! is plain data there; the only way in from another thread is a message to its
//! [`ReactorHandle`], and a message is a closure that the reactor runs. Two drivers stand behind
//! one interface, io_uring (glommio) and epoll (tokio's current-thread runtime): this is the only
//! room that names either. It knows nothing of what runs on it.

mod acceptor;
mod descriptors;
mod drain;
mod driver;
mod ending;
mod mailbox;
mod network;
mod offload;
mod per_reactor;
mod reactor;
mod reactors;
mod reply;
mod socket_file;
mod stall;
mod tcp;
mod thread_bound;
mod timer;
mod topology;
mod turn;
mod unix;
mod watched_stream;

pub use acceptor::{Acceptor, Listener, Serve};
pub use descriptors::raise_descriptor_limit;
pub use drain::{Draining, draining};
pub use driver::{Driver, DriverChoice, yield_now};
pub use ending::end_at_once;
pub use mailbox::{Closed, Full, Mailbox};
pub use network::{choose_cryptography, post, wait_for_network};
pub use offload::offload;
pub use per_reactor::PerReactor;
pub use reactor::{Message, ReactorHandle, current, spawn, try_current};
pub use reactors::{ReactorSettings, Reactors, StartError};
pub use reply::{End, ReplyReceiver, ReplySender, Unread, reply_channel};
pub use stall::{Label, label};
pub use tcp::TcpStream;
pub use timer::{Sleep, sleep, sleep_until, unchanged};
pub use topology::{Topology, pin_to};
pub use turn::{TURN, spend_turn, turn_is_over};
pub use unix::{Peer, UnixStream};
pub use watched_stream::{Watch, WatchedStream};

#[cfg(all(test, not(loom)))]
mod tests;
