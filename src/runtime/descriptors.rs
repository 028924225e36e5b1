use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// Descriptors that are not for connections: event loops, models' files, shared memory. Of a small
/// limit half is kept.
const KEPT: u64 = 512;

/// Raises the process's limit of open descriptors as far as the system allows without asking anyone,
/// and returns how many connections may be open under it.
pub fn raise_descriptor_limit() -> usize {
    let limit = match getrlimit(Resource::RLIMIT_NOFILE) {
        Ok((soft, hard)) if soft < hard => match setrlimit(Resource::RLIMIT_NOFILE, hard, hard) {
            Ok(()) => hard,
            Err(error) => {
                log::debug!("cannot raise the limit of {soft} open descriptors: {error}");
                soft
            }
        },
        Ok((soft, _)) => soft,
        Err(error) => {
            log::warn!("the limit of open descriptors cannot be read: {error}");
            return usize::MAX;
        }
    };
    connections_under(limit)
}

fn connections_under(descriptors: u64) -> usize {
    usize::try_from(descriptors - KEPT.min(descriptors / 2)).unwrap_or(usize::MAX)
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn some_descriptors_are_kept_from_connections() {
        for (descriptors, connections) in [(0, 0), (64, 32), (1024, 512), (65_536, 65_024)] {
            assert_eq!(connections_under(descriptors), connections);
        }
    }
}
