use std::{path::PathBuf, sync::Arc};

use clap::Args;

use crate::{
    cli::flags::switch,
    ingress::ring::{self, RingSettings},
    runtime::{Listener, ReactorHandle, spawn},
    serving::Server,
};

/// Permissions for others than the owner.
const OTHERS: u32 = 0o077;

/// The ring: shared memory for clients on the same host.
#[derive(Args, Clone, Debug)]
pub struct RingArgs {
    /// Where clients on the same host reach the server to share memory with it; no place, no ring
    #[arg(long = "ring-socket", value_name = "PATH")]
    socket: Option<PathBuf>,
    /// The permissions of that socket, in octal: who may write to it may use the ring
    #[arg(long = "ring-socket-mode", value_name = "MODE", default_value = "600",
          value_parser = permissions)]
    mode: u32,
    /// The largest arena that a client of the ring may have, in bytes; it counts towards
    /// --memory-budget-byte-size
    #[arg(long = "ring-arena-byte-size-max", value_name = "BYTES", default_value_t = 1 << 30)]
    arena_bytes_max: u64,
    /// Whether clients of the ring may have a core of the server look for their requests all the time:
    /// one more event loop, which serves the ring alone
    #[arg(long = "ring-spin", value_name = "BOOL", num_args = 0..=1, default_missing_value = "true",
          default_value = "false", value_parser = switch(), action = clap::ArgAction::Set)]
    spin: bool,
}

fn permissions(text: &str) -> Result<u32, String> {
    let mode = u32::from_str_radix(text, 8).ok().filter(|mode| *mode <= 0o777);
    mode.ok_or_else(|| format!("expected up to three octal digits, got '{text}'"))
}

impl RingArgs {
    /// Event loops that serve the ring alone.
    pub fn reactors(&self) -> usize {
        usize::from(self.spin && self.socket.is_some())
    }

    /// Where the ring is.
    pub fn path(&self) -> Option<&PathBuf> {
        self.socket.as_ref()
    }

    /// Listens for clients of the ring, if that is asked for; `last` is the reactor that serves the ring
    /// alone if one does.
    ///
    /// # Errors
    /// When the path cannot be had.
    pub fn listen(
        &self,
        server: &Arc<Server>,
        last: Option<&ReactorHandle>,
    ) -> std::io::Result<Option<Listener>> {
        let Some(path) = &self.socket else { return Ok(None) };
        let settings = RingSettings {
            arena_bytes_max: self.arena_bytes_max,
            may_spin: self.spin,
            is_private: self.mode & OTHERS == 0,
        };
        let server = server.clone();
        let serve = Arc::new(move |socket| {
            spawn(&"a client of the ring", ring::serve(socket, server.clone(), settings));
        });
        let listener = Listener::at_path(path, self.mode, serve)?;
        Ok(Some(match last.filter(|_| self.reactors() > 0) {
            Some(reactor) => listener.on(reactor.clone()),
            None => listener,
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn permissions_are_octal() {
        assert_eq!(permissions("660"), Ok(0o660));
        for bad in ["", "999", "1777", "rw"] {
            assert!(permissions(bad).is_err(), "{bad}");
        }
    }
}
