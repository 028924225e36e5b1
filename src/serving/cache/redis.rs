//! The second level of the response cache: a redis server that several servers may share. It is asked
//! from threads of its own, so that no reactor waits for it, and what it does not know, or does not say
//! in time, is a miss.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use crossbeam_channel::{Receiver, Sender, bounded};
use redis::{Commands as _, Connection, ConnectionAddr, IntoConnectionInfo as _, RedisResult};

use crate::scheduler::{CacheKey, CachedResponse};

/// Questions and answers that may wait for the threads; what comes on top is not asked and not kept.
const WAITING_MAX: usize = 1024;
/// Bytes of answers that may wait to be kept.
const WAITING_BYTES_MAX: usize = 64 << 20;
/// An answer of more bytes stays on this machine.
const RESPONSE_BYTES_MAX: usize = WAITING_BYTES_MAX;
/// How long a server that failed is left alone.
const PAUSE: Duration = Duration::from_secs(1);

/// Where the redis server is and how to speak to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RedisSettings {
    /// Its address.
    pub host: String,
    /// Its port.
    pub port: u16,
    /// Whom to log in as.
    pub user: Option<String>,
    /// With which password.
    pub password: Option<String>,
    /// Which of its databases.
    pub database: i64,
    /// How long a connection may take.
    pub connect_timeout: Duration,
    /// How long an answer may take.
    pub timeout: Duration,
    /// How many connections there are, each with a thread.
    pub connections: usize,
}

impl RedisSettings {
    /// Those of a server at `host` and `port` that wants no password.
    pub fn new(host: String, port: u16) -> Self {
        Self {
            host,
            port,
            user: None,
            password: None,
            database: 0,
            connect_timeout: Duration::from_millis(250),
            timeout: Duration::from_millis(100),
            connections: 2,
        }
    }

    fn client(&self) -> RedisResult<redis::Client> {
        let info = ConnectionAddr::Tcp(self.host.clone(), self.port).into_connection_info()?;
        let mut terms = info.redis_settings().clone().set_db(self.database);
        if let Some(user) = &self.user {
            terms = terms.set_username(user);
        }
        if let Some(password) = &self.password {
            terms = terms.set_password(password);
        }
        redis::Client::open(info.set_redis_settings(terms))
    }
}

/// The threads that speak to the server. They end when this is dropped and what was asked is answered.
pub struct Redis {
    asks: Sender<Ask>,
    waiting_bytes: Arc<AtomicUsize>,
}

enum Ask {
    Find(CacheKey, Box<dyn FnOnce(Option<CachedResponse>) + Send>),
    Keep(CacheKey, Box<CachedResponse>),
}

impl Redis {
    /// Starts the threads. Whether there is a server is found out when it is needed.
    ///
    /// # Errors
    /// When no thread can be had.
    pub fn start(settings: &RedisSettings) -> io::Result<Self> {
        let (asks, receive) = bounded(WAITING_MAX);
        let waiting_bytes = Arc::new(AtomicUsize::new(0));
        let is_lost = Arc::new(AtomicBool::new(false));
        for _ in 0..settings.connections.max(1) {
            let line = Line {
                settings: settings.clone(),
                connection: None,
                rests_until: None,
                is_lost: is_lost.clone(),
            };
            let (receive, waiting_bytes) = (receive.clone(), waiting_bytes.clone());
            thread::Builder::new()
                .name("redis".into())
                .spawn(move || line.serve(&receive, &waiting_bytes))?;
        }
        Ok(Self { asks, waiting_bytes })
    }

    /// Looks an answer up, and says to `found`, on some thread, what there is. Where too much waits
    /// already, that is nothing, at once.
    pub fn find(&self, key: CacheKey, found: Box<dyn FnOnce(Option<CachedResponse>) + Send>) {
        if let Err(refused) = self.asks.try_send(Ask::Find(key, found))
            && let Ask::Find(_, found) = refused.into_inner()
        {
            found(None);
        }
    }

    /// Keeps an answer, unless too much waits to be kept already.
    pub fn keep(&self, key: CacheKey, response: CachedResponse) {
        let bytes = response.byte_size();
        if bytes > RESPONSE_BYTES_MAX {
            return;
        }
        let waiting = self.waiting_bytes.fetch_add(bytes, Ordering::Relaxed);
        if waiting + bytes > WAITING_BYTES_MAX
            || self.asks.try_send(Ask::Keep(key, Box::new(response))).is_err()
        {
            self.waiting_bytes.fetch_sub(bytes, Ordering::Relaxed);
        }
    }
}

/// One connection, which is made again when it broke, after a rest.
struct Line {
    settings: RedisSettings,
    connection: Option<Connection>,
    rests_until: Option<Instant>,
    /// Whether the log knows that the server cannot be reached.
    is_lost: Arc<AtomicBool>,
}

impl Line {
    fn serve(mut self, asks: &Receiver<Ask>, waiting_bytes: &AtomicUsize) {
        for ask in asks {
            match ask {
                Ask::Find(key, found) => found(self.find(key)),
                Ask::Keep(key, response) => {
                    self.keep(key, &response);
                    waiting_bytes.fetch_sub(response.byte_size(), Ordering::Relaxed);
                }
            }
        }
    }

    fn find(&mut self, key: CacheKey) -> Option<CachedResponse> {
        let found: Option<Option<Vec<u8>>> = self.ask(|connection| connection.get(name(key)));
        let entry = found??;
        match CachedResponse::decode(entry.into()) {
            Ok(response) => Some(response),
            Err(error) => {
                log::warn!("redis: {}: {error}", name(key));
                None
            }
        }
    }

    fn keep(&mut self, key: CacheKey, response: &CachedResponse) {
        self.ask(|connection| connection.set::<_, _, ()>(name(key), response.encode()));
    }

    /// Asks the server; `None` when it does not answer, or did not a moment ago.
    fn ask<T>(&mut self, question: impl FnOnce(&mut Connection) -> RedisResult<T>) -> Option<T> {
        if self.rests_until.is_some_and(|until| Instant::now() < until) {
            return None;
        }
        match self.connected().and_then(question) {
            Ok(answer) => {
                if self.is_lost.swap(false, Ordering::Relaxed) {
                    log::info!("redis: {} answers again", self.address());
                }
                Some(answer)
            }
            Err(error) => {
                // What comes next on this connection could be the answer to this question.
                self.connection = None;
                self.rests_until = Some(Instant::now() + PAUSE);
                if !self.is_lost.swap(true, Ordering::Relaxed) {
                    log::warn!(
                        "redis: {}: {error}; the response cache does without it meanwhile",
                        self.address()
                    );
                }
                None
            }
        }
    }

    fn connected(&mut self) -> RedisResult<&mut Connection> {
        if self.connection.is_none() {
            let client = self.settings.client()?;
            let connection = client.get_connection_with_timeout(self.settings.connect_timeout)?;
            connection.set_read_timeout(Some(self.settings.timeout))?;
            connection.set_write_timeout(Some(self.settings.timeout))?;
            self.connection = Some(connection);
        }
        self.connection.as_mut().ok_or_else(|| io::Error::from(io::ErrorKind::NotConnected).into())
    }

    fn address(&self) -> String {
        format!("{}:{}", self.settings.host, self.settings.port)
    }
}

fn name(key: CacheKey) -> String {
    format!("nereid:{key}")
}

#[cfg(test)]
mod tests {
    use std::{net::TcpListener, sync::mpsc};

    use super::*;
    use crate::{
        inference::{Admitted, Parameters},
        scheduler::{KeyHasher, ModelIdentity},
    };

    const PATIENCE: Duration = Duration::from_secs(20);

    fn key() -> CacheKey {
        let nothing = Admitted {
            batch_size: 1,
            inputs: Default::default(),
            outputs: Default::default(),
            classes: Default::default(),
        };
        let identity = ModelIdentity::new("", "m", 1, b"");
        KeyHasher::new(&identity, &nothing, &Parameters::default()).finish()
    }

    fn found(redis: &Redis) -> bool {
        let (report, answer) = mpsc::channel();
        redis.find(key(), Box::new(move |found| report.send(found.is_some()).unwrap()));
        answer.recv_timeout(PATIENCE).unwrap()
    }

    #[test]
    fn nobody_there_is_a_miss() {
        let vacant = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let redis = Redis::start(&RedisSettings::new("127.0.0.1".into(), vacant.port())).unwrap();
        assert!(!found(&redis) && !found(&redis));
    }

    #[test]
    fn a_server_that_never_answers_is_a_miss() {
        let deaf = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = deaf.local_addr().unwrap().port();
        let settings = RedisSettings {
            timeout: Duration::from_millis(10),
            connect_timeout: Duration::from_millis(10),
            connections: 1,
            ..RedisSettings::new("127.0.0.1".into(), port)
        };
        let redis = Redis::start(&settings).unwrap();
        assert!(!found(&redis));
        // More than may wait are not held up.
        for _ in 0..10 * WAITING_MAX {
            redis.keep(key(), CachedResponse::copied(&[], &Parameters::default()));
        }
        assert!(!found(&redis));
    }
}
