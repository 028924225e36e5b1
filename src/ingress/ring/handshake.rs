//! Who a new client is, and the memory that it gets.

use std::{os::fd::AsFd as _, pin::pin, rc::Rc, sync::Arc, time::Duration};

use futures_util::future::{Either, select};
use nereid_ring::{ENTRIES_MAX, HELLO_BYTES, Header, Hello, REFUSAL_MAX, Welcome};
use nix::unistd::geteuid;

use super::{RingSettings, client::Client};
use crate::{
    memory::{BufferPool, RingMemory},
    runtime::{Peer, UnixStream, draining, sleep},
    serving::Server,
};

/// How long a client may take to say what it wants.
const HELLO_MAX: Duration = Duration::from_secs(10);

/// Answers a client's hello. `None` when it is refused or does not come to say it.
pub async fn greet(
    mut socket: UnixStream,
    server: Arc<Server>,
    settings: RingSettings,
) -> Option<(Rc<Client>, bool)> {
    let peer = match socket.peer() {
        Ok(peer) => peer,
        Err(error) => {
            log::warn!("refused a client of the ring: the system does not tell who it is: {error}");
            return None;
        }
    };
    let mut hello = [0; HELLO_BYTES];
    let impatient = select(sleep(HELLO_MAX), draining());
    let read = match select(pin!(socket.read_exact(&mut hello)), impatient).await {
        Either::Left((read, _)) => read,
        Either::Right(_) => return None,
    };
    if let Err(error) = read {
        log::debug!("a client of the ring (process {}) left without a word: {error}", peer.pid);
        return None;
    }
    let agreed = admit(peer, settings)
        .and_then(|()| Hello::parse(&hello).map_err(|error| error.to_string()))
        .and_then(|hello| Ok((hello, plan(&hello, settings)?)));
    let (hello, header) = match agreed {
        Ok(agreed) => agreed,
        Err(reason) => return refuse(&socket, peer, &reason),
    };
    let spins = hello.spin && settings.may_spin;
    match hand_over(&socket, header, spins, server.pool()) {
        Ok(memory) => {
            log::info!(
                "process {} of user {}, group {} uses the ring with an arena of {} bytes",
                peer.pid,
                peer.uid,
                peer.gid,
                header.arena_bytes
            );
            Some((Client::new(socket, memory, server), spins))
        }
        Err(reason) => refuse(&socket, peer, &reason),
    }
}

/// The file's permissions have let the client in; where they are for one user, it must be that one.
fn admit(peer: Peer, settings: RingSettings) -> Result<(), String> {
    let own = geteuid().as_raw();
    match !settings.is_private || peer.uid == own || peer.uid == 0 {
        true => Ok(()),
        false => Err(format!("the ring is for user {own} only, got user {}", peer.uid)),
    }
}

fn plan(hello: &Hello, settings: RingSettings) -> Result<Header, String> {
    let most = settings.arena_bytes_max;
    if hello.arena_bytes > most {
        return Err(format!(
            "an arena has at most {most} bytes (--ring-arena-byte-size-max), got {}",
            hello.arena_bytes
        ));
    }
    Header::plan(hello.submissions, hello.completions, hello.arena_bytes).ok_or_else(|| {
        format!(
            "a ring has at most {ENTRIES_MAX} places, got {} for submissions and {} for completions",
            hello.submissions, hello.completions
        )
    })
}

fn hand_over(
    socket: &UnixStream,
    header: Header,
    spin: bool,
    pool: &BufferPool,
) -> Result<Arc<RingMemory>, String> {
    let (memory, file) = RingMemory::create(header, pool).map_err(|error| error.to_string())?;
    let welcome = Welcome { total_bytes: header.total_bytes, refusal_bytes: 0, spin };
    let sent = socket.send(&welcome.encode(), Some(file.as_fd()));
    sent.map_err(|error| format!("cannot send the descriptor of its memory: {error}"))?;
    Ok(memory)
}

fn refuse<T>(socket: &UnixStream, peer: Peer, reason: &str) -> Option<T> {
    log::warn!("refused process {} of user {} the ring: {reason}", peer.pid, peer.uid);
    let text = reason.get(..REFUSAL_MAX).unwrap_or(reason);
    let refusal_bytes = u32::try_from(text.len()).unwrap_or(u32::MAX);
    let mut message = Welcome { total_bytes: 0, refusal_bytes, spin: false }.encode();
    message.extend_from_slice(text.as_bytes());
    // An error here means that the client has left.
    let _ = socket.send(&message, None);
    None
}
