//! The response cache at work: requests of models that want it are looked up before they are queued, and
//! what they are answered is kept.
//!
//! Each key has one owner among the reactors, which keeps its answer. A request goes there, is answered at
//! once or goes on to its model, and its answer comes back to the owner: the request itself is the message.
//! A redis server can be a second level, or the only one ([`redis`]). What is kept, and under which key, is
//! the scheduler room's; this room moves requests and counts.

mod redis;

use std::{
    cell::RefCell,
    io, process,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use futures_util::FutureExt as _;

use self::redis::Redis;
pub use self::redis::RedisSettings;
use super::{classification, job::Job};
use crate::{
    inference::{Error, InferOutput, InferResponse, Parameters, Timestamp},
    observe::trace::Event,
    runtime::{Full, PerReactor, ReactorHandle, current, spawn, yield_now},
    scheduler::{CacheKey, CachedResponse, KeyHasher, ModelIdentity, ResponseCache},
};

/// Bytes that are hashed before others on the reactor get a turn: 100 µs and less.
const HASHED_BYTES_MAX: usize = 256 << 10;

/// Where answers are kept.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CacheSettings {
    /// Bytes of this server's memory, shared evenly by the reactors.
    pub local_bytes: Option<usize>,
    /// A redis server, which is asked for what is not in memory.
    pub redis: Option<RedisSettings>,
}

/// The answers of all models that want theirs kept.
pub struct Caches {
    reactors: Vec<ReactorHandle>,
    /// What each reactor may keep.
    share: usize,
    local: PerReactor<RefCell<ResponseCache>>,
    redis: Option<Redis>,
    loads: AtomicU64,
}

impl Caches {
    /// Empty ones, on these reactors.
    ///
    /// # Errors
    /// When the threads that speak to redis cannot be had.
    pub fn start(settings: &CacheSettings, reactors: &[ReactorHandle]) -> io::Result<Arc<Self>> {
        Ok(Arc::new(Self {
            reactors: reactors.to_vec(),
            share: settings.local_bytes.unwrap_or(0) / reactors.len().max(1),
            local: PerReactor::new(reactors),
            redis: settings.redis.as_ref().map(Redis::start).transpose()?,
            loads: AtomicU64::new(0),
        }))
    }

    /// Whether other servers see what is kept, so that keys must mean the same everywhere.
    pub fn are_shared(&self) -> bool {
        self.redis.is_some()
    }

    /// What no other load of any model has, on any server.
    pub fn distinction(&self) -> Vec<u8> {
        let load = self.loads.fetch_add(1, Ordering::Relaxed);
        let time = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let place = (std::ptr::from_ref(self).addr() as u64, process::id());
        format!("{time:?} {place:?} {load}").into_bytes()
    }

    /// This reactor's answers.
    fn local(&self) -> &RefCell<ResponseCache> {
        if self.local.get().is_none() {
            self.local.set(RefCell::new(ResponseCache::new(self.share)));
        }
        // It was set just now.
        self.local.get().unwrap_or_else(|| unreachable!("the cache of this reactor was set"))
    }

    fn owner(&self, key: CacheKey) -> Option<&ReactorHandle> {
        self.reactors.get(key.owner(self.reactors.len()))
    }
}

/// The cache as one version of a model uses it.
#[derive(Clone)]
pub struct VersionCache {
    caches: Arc<Caches>,
    identity: ModelIdentity,
}

/// Where the answer of a request that was not found is to be kept.
pub struct CacheSlot {
    key: CacheKey,
    /// How long the search took.
    search: Duration,
}

impl VersionCache {
    /// For the version that `identity` tells from all others.
    pub fn new(caches: Arc<Caches>, identity: ModelIdentity) -> Self {
        Self { caches, identity }
    }

    /// Answers a request, if its answer is known, and else sends it on to its model. Runs on any reactor.
    pub fn look_up(&self, job: Job) {
        if job.admitted.byte_size() > HASHED_BYTES_MAX {
            let identity = self.identity.clone();
            spawn(&"hashing a request", async move {
                let key = key(&identity, &job).await;
                ask_owner(job, key);
            });
            return;
        }
        let ready = key(&self.identity, &job).now_or_never();
        match ready {
            Some(key) => ask_owner(job, key),
            // It pauses only after more bytes than these.
            None => job.version.clone().schedule(job),
        }
    }
}

/// What a request's answer is kept under.
async fn key(identity: &ModelIdentity, job: &Job) -> CacheKey {
    let mut hasher = KeyHasher::new(identity, &job.admitted, &job.parameters);
    let mut hashed = 0;
    for (index, input) in job.admitted.inputs.iter().enumerate() {
        let Some(input) = input else { continue };
        hasher.input(index, &input.shape, input.data.len());
        for chunk in input.data.pieces().iter().flat_map(|piece| piece.chunks(HASHED_BYTES_MAX)) {
            if hashed + chunk.len() > HASHED_BYTES_MAX {
                yield_now().await;
                hashed = 0;
            }
            hasher.bytes(chunk);
            hashed += chunk.len();
        }
    }
    hasher.finish()
}

fn ask_owner(job: Job, key: CacheKey) {
    let Some(VersionCache { caches, .. }) = &job.version.cache else { return };
    let Some(owner) = caches.owner(key).cloned() else { return };
    if owner.is_current() {
        return search(job, key);
    }
    let there = owner.clone();
    let message = Box::new(move || match there.is_current() {
        true => search(job, key),
        false => job.fail(current().index(), Error::QueueFull),
    });
    match owner.try_send(message) {
        Ok(()) => {}
        // Run here it says that it was refused.
        Err(Full::Full(message)) => message(),
        Err(Full::Closed(_)) => log::debug!("a request came after its key's reactor had ended"),
    }
}

/// Looks in this reactor's answers, then in redis.
fn search(job: Job, key: CacheKey) {
    let version = job.version.clone();
    let Some(VersionCache { caches, .. }) = &version.cache else { return };
    if job.reply.is_abandoned() {
        return job.fail(current().index(), Error::Cancelled);
    }
    let found = caches.local().borrow_mut().get(key);
    match (found, &caches.redis) {
        (Some(found), _) => hit(job, &found),
        (None, None) => miss(job, key),
        (None, Some(redis)) => {
            let owner = current();
            redis.find(
                key,
                Box::new(move |found| {
                    let back = Box::new(move || match found {
                        Some(found) => {
                            if let Some(VersionCache { caches, .. }) = &job.version.cache {
                                caches.local().borrow_mut().insert(key, found.clone());
                            }
                            hit(job, &found);
                        }
                        None => miss(job, key),
                    });
                    if owner.send(back).is_err() {
                        log::debug!("redis answered after the reactor that asked had ended");
                    }
                }),
            );
        }
    }
}

fn hit(mut job: Job, found: &CachedResponse) {
    let reactor = current().index();
    let version = job.version.clone();
    let mut outputs = found.outputs.clone();
    if let Some(trace) = &mut job.trace {
        trace.outputs(&outputs);
    }
    if !job.admitted.classes.is_empty()
        && let Err(error) = classification::apply(&version, &job.admitted, &mut outputs)
    {
        return job.fail(reactor, error);
    }
    let now = Timestamp::now();
    let took = now - job.arrived;
    version.statistics.found(reactor, took);
    version.statistics.succeeded(reactor, took, took, took);
    if let Some(account) = &job.account {
        account.add(took, Default::default());
    }
    if let Some(mut trace) = job.trace.take() {
        trace.at(Event::CacheHit, now);
        trace.answered(now);
    }
    job.reply.finish(Ok(InferResponse {
        model_name: version.name.clone(),
        model_version: version.version,
        id: job.id,
        parameters: found.parameters.clone(),
        outputs,
    }));
}

fn miss(mut job: Job, key: CacheKey) {
    let now = Timestamp::now();
    if let Some(trace) = &mut job.trace {
        trace.at(Event::CacheMiss, now);
    }
    job.cache_slot = Some(CacheSlot { key, search: now - job.arrived });
    let version = job.version.clone();
    // An ensemble hears of a client that leaves only where the answer is wanted.
    let origin = job.reply.reactor().clone();
    if version.steps.is_none() || origin.is_current() {
        return version.schedule(job);
    }
    if origin.send(Box::new(move || version.schedule(job))).is_err() {
        log::debug!("a request was not in the cache, and its reactor has ended");
    }
}

/// Keeps the answer of a job that was not found, before classes are made of it, and counts the miss. Runs
/// on reactor `reactor`.
pub fn keep(job: &mut Job, outputs: &[InferOutput], parameters: &Parameters, reactor: usize) {
    let Some(CacheSlot { key, search }) = job.cache_slot.take() else { return };
    let Some(VersionCache { caches, .. }) = &job.version.cache else { return };
    let began = Timestamp::now();
    let bytes = CachedResponse::byte_size_of(outputs, parameters);
    let is_local = bytes <= caches.share;
    if is_local || caches.redis.is_some() {
        let response = CachedResponse::copied(outputs, parameters);
        if let Some(redis) = &caches.redis {
            redis.keep(key, response.clone());
        }
        if is_local {
            keep_local(caches, key, response);
        }
    }
    job.version.statistics.missed(reactor, search + (Timestamp::now() - began));
}

fn keep_local(caches: &Arc<Caches>, key: CacheKey, response: CachedResponse) {
    let Some(owner) = caches.owner(key) else { return };
    if owner.is_current() {
        caches.local().borrow_mut().insert(key, response);
        return;
    }
    let there = caches.clone();
    let message = Box::new(move || {
        there.local().borrow_mut().insert(key, response);
    });
    if owner.try_send(message).is_err() {
        log::debug!("an answer was not kept: the reactor that has its cache key is busy");
    }
}
