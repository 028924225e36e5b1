//! The flags of the response cache and of the rate limiter.

use std::{collections::BTreeMap, str::FromStr, time::Duration};

use clap::Args;

use crate::{
    scheduler::ResourceLimit,
    serving::{CacheSettings, RedisSettings},
};

/// What models share: kept answers, and resources.
#[derive(Args, Clone, Debug)]
pub struct SharingArgs {
    /// A setting of the response cache, as local,size=<BYTES> for this server's memory or
    /// redis,<host|port|user|password|db|connect_timeout|socket_timeout|pool_size>=<VALUE> for a redis
    /// server, timeouts in milliseconds; with both, redis is asked for what is not in memory
    #[arg(long, value_name = "SETTING")]
    cache_config: Vec<CacheSetting>,
    /// Older form of --cache-config local,size=<BYTES>
    #[arg(long, value_name = "BYTES", hide = true)]
    response_cache_byte_size: Option<usize>,
    /// Whether instances take turns when there is not enough of what they share: execution_count, or
    /// off to ignore the rate_limiter of configurations
    #[arg(long, value_name = "MODE", default_value = "off", value_parser = ["off", "execution_count"])]
    rate_limit: String,
    /// How much there is of what instances share, as <NAME>:<COUNT> or <NAME>:<COUNT>:<DEVICE>; without
    /// any, as much of each as the instance needs that needs most
    #[arg(long, value_name = "RESOURCE")]
    rate_limit_resource: Vec<Resource>,
}

/// `<cache>,<setting>=<value>`
#[derive(Clone, Debug)]
struct CacheSetting {
    cache: String,
    name: String,
    value: String,
}

impl FromStr for CacheSetting {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let malformed = || format!("expected <name>,<setting>=<value>, got '{text}'");
        let (cache, setting) = text.split_once(',').ok_or_else(malformed)?;
        let (name, value) = setting.split_once('=').ok_or_else(malformed)?;
        Ok(Self { cache: cache.to_owned(), name: name.to_owned(), value: value.to_owned() })
    }
}

#[derive(Clone, Debug)]
struct Resource(ResourceLimit);

impl FromStr for Resource {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let malformed =
            || format!("expected <name>:<count>:<device> or <name>:<count>, got '{text}'");
        let (name, rest) = text.split_once(':').ok_or_else(malformed)?;
        let (count, device) = match rest.split_once(':') {
            Some((count, device)) => (count, Some(device)),
            None => (rest, None),
        };
        let device = device.map(str::parse::<i32>).transpose().map_err(|_| malformed())?;
        Ok(Self(ResourceLimit {
            name: name.to_owned(),
            count: count.parse().map_err(|_| malformed())?,
            // As in tritonserver, -1 stands for each.
            device: device.filter(|device| *device >= 0),
        }))
    }
}

impl SharingArgs {
    /// What instances share, if they take turns.
    pub fn limits(&self) -> Option<Vec<ResourceLimit>> {
        let limits = self.rate_limit_resource.iter().map(|Resource(limit)| limit.clone());
        (self.rate_limit != "off").then(|| limits.collect())
    }

    /// Where answers are kept, if they are.
    ///
    /// # Errors
    /// Names the setting that is missing, unknown or malformed.
    pub fn cache(&self) -> Result<Option<CacheSettings>, String> {
        if self.response_cache_byte_size.is_some() && !self.cache_config.is_empty() {
            return Err("Incompatible flags --response-cache-byte-size and --cache-config both \
                        provided. Please provide one or the other."
                .to_owned());
        }
        let mut settings: BTreeMap<&str, BTreeMap<&str, &str>> = BTreeMap::new();
        for CacheSetting { cache, name, value } in &self.cache_config {
            settings.entry(cache).or_default().insert(name, value);
        }
        let mut caches =
            CacheSettings { local_bytes: self.response_cache_byte_size, ..Default::default() };
        for (cache, settings) in settings {
            match cache {
                "local" => caches.local_bytes = Some(local(settings)?),
                "redis" => caches.redis = Some(redis(settings)?),
                _ => {
                    return Err(format!(
                        "--cache-config: expected the cache local or redis, got '{cache}'"
                    ));
                }
            }
        }
        let any = caches.local_bytes.is_some() || caches.redis.is_some();
        Ok(any.then_some(caches))
    }
}

fn local(mut settings: BTreeMap<&str, &str>) -> Result<usize, String> {
    let size = settings.remove("size").and_then(|size| size.parse().ok());
    nothing_else("local", &settings)?;
    size.filter(|&size| size > 0)
        .ok_or_else(|| "--cache-config: local needs size=<bytes>, more than 0".to_owned())
}

fn redis(mut settings: BTreeMap<&str, &str>) -> Result<RedisSettings, String> {
    let host = settings.remove("host").filter(|host| !host.is_empty());
    let port = settings.remove("port").and_then(|port| port.parse().ok());
    let (Some(host), Some(port)) = (host, port) else {
        return Err("--cache-config: redis needs host=<name> and port=<number>".to_owned());
    };
    let mut redis = RedisSettings::new(host.to_owned(), port);
    let from_environment = |name: &str| std::env::var(name).ok().filter(|text| !text.is_empty());
    redis.user = from_environment("TRITONCACHE_REDIS_USERNAME");
    redis.password = from_environment("TRITONCACHE_REDIS_PASSWORD");
    let mut text = |name: &str| settings.remove(name).map(str::to_owned);
    redis.user = text("user").or(redis.user);
    redis.password = text("password").or(redis.password);
    let mut number = |name: &str, default: u64, most: u64| match settings.remove(name) {
        None => Ok(default),
        Some(value) => value.parse().ok().filter(|number| *number <= most).ok_or_else(|| {
            format!("--cache-config: redis,{name} must be a number up to {most}, got '{value}'")
        }),
    };
    let millis = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
    redis.database = number("db", 0, u32::MAX.into())?.cast_signed();
    let connect = number("connect_timeout", millis(redis.connect_timeout), 60_000)?;
    redis.connect_timeout = Duration::from_millis(connect.max(1));
    let answer = number("socket_timeout", millis(redis.timeout), 60_000)?;
    redis.timeout = Duration::from_millis(answer.max(1));
    redis.connections = number("pool_size", redis.connections as u64, 64)?.max(1) as usize;
    nothing_else("redis", &settings)?;
    Ok(redis)
}

fn nothing_else(cache: &str, settings: &BTreeMap<&str, &str>) -> Result<(), String> {
    match settings.keys().next() {
        None => Ok(()),
        Some(name) => {
            Err(format!("--cache-config: the cache {cache} has no setting '{name}' here"))
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct CommandLine {
        #[command(flatten)]
        sharing: SharingArgs,
    }

    fn read(flags: &[&str]) -> SharingArgs {
        CommandLine::parse_from(["nereid"].iter().chain(flags)).sharing
    }

    #[test]
    fn caches_are_set_up() {
        assert_eq!(read(&[]).cache(), Ok(None));
        let local = Ok(Some(CacheSettings { local_bytes: Some(1 << 20), redis: None }));
        assert_eq!(read(&["--cache-config=local,size=1048576"]).cache(), local);
        assert_eq!(read(&["--response-cache-byte-size=1048576"]).cache(), local);
        let flags = [
            "--cache-config=local,size=9",
            "--cache-config=redis,host=h",
            "--cache-config=redis,port=6379",
            "--cache-config=redis,socket_timeout=7",
        ];
        let both = read(&flags).cache().unwrap().unwrap();
        let redis = both.redis.unwrap();
        assert_eq!((both.local_bytes, redis.host.as_str(), redis.port), (Some(9), "h", 6379));
        assert_eq!(redis.timeout, Duration::from_millis(7));
        for (flags, expected) in [
            (&["--cache-config=local,x=1"][..], "the cache local has no setting 'x' here"),
            (&["--cache-config=local,size=abc"], "local needs size=<bytes>"),
            (&["--cache-config=local,size=0"], "local needs size=<bytes>"),
            (&["--cache-config=redis,host=h"], "redis needs host=<name> and port=<number>"),
            (&["--cache-config=disk,size=1"], "expected the cache local or redis, got 'disk'"),
            (
                &["--cache-config=local,size=1", "--response-cache-byte-size=1"],
                "Please provide one or the other.",
            ),
        ] {
            let refused = read(flags).cache().unwrap_err();
            assert!(refused.contains(expected), "{refused}");
        }
    }

    #[test]
    fn resources_are_read_as_tritonserver_reads_them() {
        assert_eq!(read(&["--rate-limit-resource=R:1"]).limits(), None);
        let on = "--rate-limit=execution_count";
        assert_eq!(read(&[on]).limits(), Some(Vec::new()));
        for (text, device) in [("R:3", None), ("R:3:0", Some(0)), ("R:3:-1", None)] {
            let expected = ResourceLimit { name: "R".into(), count: 3, device };
            let flag = format!("--rate-limit-resource={text}");
            assert_eq!(read(&[on, &flag]).limits(), Some(vec![expected]));
        }
        for text in ["R", "R:x", "R:3:global", "R:-1"] {
            assert!(text.parse::<Resource>().is_err(), "{text}");
        }
    }
}
