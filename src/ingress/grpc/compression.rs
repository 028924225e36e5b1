//! Packed messages: gzip and deflate, in both directions.

use std::{
    io::{Read, Write},
    str::FromStr,
};

use bytes::{BufMut, Bytes, BytesMut};
use flate2::{
    Compression,
    bufread::{GzDecoder, ZlibDecoder},
    write::{GzEncoder, ZlibEncoder},
};
use http::{HeaderMap, HeaderName, HeaderValue};
use smallvec::smallvec;

use super::{
    encode::{FRAME_HEADER, Segments},
    message::Message,
};
use crate::{
    inference::{Error, Rope},
    ingress::away::here_or_away,
};

/// How the messages that follow are packed, where they are.
pub static GRPC_ENCODING: HeaderName = HeaderName::from_static("grpc-encoding");
/// How the peer's messages may be packed.
pub static GRPC_ACCEPT_ENCODING: HeaderName = HeaderName::from_static("grpc-accept-encoding");

/// How a message is packed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Packing {
    /// Not at all.
    #[default]
    Identity,
    /// The zlib format, which gRPC calls `deflate`.
    Deflate,
    /// The gzip format.
    Gzip,
}

/// What a request's `grpc-encoding` may be, for the answer to one that is something else.
pub const ACCEPTED: HeaderValue = HeaderValue::from_static("identity,deflate,gzip");

impl Packing {
    /// How the messages of a request may be packed.
    ///
    /// # Errors
    /// When it is in no way that we know.
    pub fn of_request(headers: &HeaderMap) -> Result<Self, Error> {
        let Some(name) = headers.get(&GRPC_ENCODING) else { return Ok(Self::Identity) };
        Self::by_name(name.as_bytes()).ok_or_else(|| Error::Unsupported {
            detail: format!("unknown grpc-encoding {name:?}, expected identity, deflate or gzip"),
        })
    }

    fn by_name(name: &[u8]) -> Option<Self> {
        match name {
            b"identity" => Some(Self::Identity),
            b"deflate" => Some(Self::Deflate),
            b"gzip" => Some(Self::Gzip),
            _ => None,
        }
    }

    /// The value of `grpc-encoding` for responses; none for those that are not packed.
    pub fn header(self) -> Option<HeaderValue> {
        match self {
            Self::Identity => None,
            Self::Deflate => Some(HeaderValue::from_static("deflate")),
            Self::Gzip => Some(HeaderValue::from_static("gzip")),
        }
    }
}

/// How much responses are packed, by Triton's names.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ResponsePacking {
    /// Not at all.
    #[default]
    None,
    /// As gzip.
    Low,
    /// As deflate, like gRPC's own library.
    Medium,
    /// As deflate.
    High,
}

impl FromStr for ResponsePacking {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "none" => Ok(Self::None),
            "low" => Ok(Self::Low),
            "medium" => Ok(Self::Medium),
            "high" => Ok(Self::High),
            _ => Err(format!("expected none, low, medium or high, got '{text}'")),
        }
    }
}

impl std::fmt::Display for ResponsePacking {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::None => "none",
            Self::Low => "low",
            Self::Medium => "medium",
            Self::High => "high",
        })
    }
}

impl ResponsePacking {
    /// How to pack the responses to a client that sent these headers. The preferred way of a level is
    /// that of gRPC's own library; the other one is taken where the client accepts only that.
    pub fn of_response(self, headers: &HeaderMap) -> Packing {
        let preferred = match self {
            Self::None => return Packing::Identity,
            Self::Low => [Packing::Gzip, Packing::Deflate],
            Self::Medium | Self::High => [Packing::Deflate, Packing::Gzip],
        };
        let accepted = headers.get(&GRPC_ACCEPT_ENCODING).map(HeaderValue::as_bytes);
        let accepted = accepted.unwrap_or_default();
        let accepts = |packing: &Packing| {
            let mut names = accepted.split(|byte| *byte == b',').map(<[u8]>::trim_ascii);
            names.any(|name| Packing::by_name(name) == Some(*packing))
        };
        preferred.into_iter().find(accepts).unwrap_or_default()
    }
}

/// Unpacks a request message that may become `limit` bytes, away from the reactor if it is large.
///
/// # Errors
/// When it is damaged, becomes larger, or leaves no memory for others.
pub async fn unpack(message: Message, packing: Packing, limit: usize) -> Result<Message, Error> {
    let Message { bytes, mut reservation, .. } = message;
    let packed_len = bytes.len();
    // Nothing may be unpacked that could not be charged for.
    let pool = reservation.pool();
    let (budget, free) = (pool.budget(), pool.budget().saturating_sub(pool.used()));
    let affordable = limit.min(free);
    let unpacked =
        here_or_away(packed_len, move || decompress(packing, &bytes, affordable)).await?;
    match unpacked {
        Some(unpacked) => {
            reservation.grow(unpacked.len().saturating_sub(packed_len))?;
            Ok(Message { bytes: unpacked.into(), packed: false, reservation })
        }
        None if affordable < limit => Err(Error::OutOfBudget { limit: budget }),
        None => Err(Error::RequestTooLarge { limit, got: limit as u64 + 1 }),
    }
}

/// Packs a response message; one that packing does not make smaller is left as it is.
pub async fn pack(segments: Segments, packing: Packing) -> Segments {
    let len = segments.iter().map(Bytes::len).sum::<usize>();
    let parts = segments.clone();
    match here_or_away(len, move || Ok(compress(packing, &parts))).await {
        Ok(Some(packed)) if packed.len() < len => smallvec![packed],
        _ => segments,
    }
}

/// The unpacked message; nothing when it is larger than `limit`.
fn decompress(packing: Packing, packed: &Rope, limit: usize) -> Result<Option<Vec<u8>>, Error> {
    let packed = packed.clone().into_bytes();
    let mut rest = &packed[..];
    let (name, read) = match packing {
        Packing::Identity => {
            // gRPC's own word for a stream that contradicts its head.
            return Err(Error::Internal {
                detail: "the request message is compressed, but its head has no grpc-encoding"
                    .into(),
            });
        }
        Packing::Deflate => ("deflate", read_to_limit(ZlibDecoder::new(&mut rest), limit)),
        Packing::Gzip => ("gzip", read_to_limit(GzDecoder::new(&mut rest), limit)),
    };
    let unpacked = read.map_err(|error| {
        Error::malformed(format!("unable to decompress {name} request message: {error}"))
    })?;
    if unpacked.len() > limit {
        return Ok(None);
    }
    if !rest.is_empty() {
        return Err(Error::malformed(format!(
            "unable to decompress {name} request message: unexpected data behind its end"
        )));
    }
    Ok(Some(unpacked))
}

/// Reads to the end, or one byte past `limit`.
fn read_to_limit(reader: impl Read, limit: usize) -> std::io::Result<Vec<u8>> {
    let mut unpacked = Vec::new();
    reader.take(limit as u64 + 1).read_to_end(&mut unpacked)?;
    Ok(unpacked)
}

/// The packed message behind its frame header; nothing when that fails.
fn compress(packing: Packing, parts: &[Bytes]) -> Option<Bytes> {
    let mut behind = FRAME_HEADER;
    let mut write = |target: &mut dyn Write| {
        parts.iter().try_for_each(|part| {
            let from = behind.min(part.len());
            behind -= from;
            target.write_all(&part[from..])
        })
    };
    let packed = match packing {
        Packing::Identity => return None,
        Packing::Deflate => {
            let mut encoder = ZlibEncoder::new(Vec::new(), Compression::default());
            write(&mut encoder).and_then(|()| encoder.finish())
        }
        Packing::Gzip => {
            let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
            write(&mut encoder).and_then(|()| encoder.finish())
        }
    };
    let packed = packed.ok()?;
    let mut message = BytesMut::with_capacity(FRAME_HEADER + packed.len());
    message.put_u8(1);
    message.put_u32(u32::try_from(packed.len()).ok()?);
    message.put_slice(&packed);
    Some(message.freeze())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn headers(name: &'static str, value: &'static str) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert(name, HeaderValue::from_static(value));
        headers
    }

    fn message(body: &[u8], cut: usize) -> Vec<Bytes> {
        let mut whole = vec![0; FRAME_HEADER];
        whole.extend_from_slice(body);
        whole.chunks(cut).map(Bytes::copy_from_slice).collect()
    }

    #[test]
    fn a_request_says_how_it_is_packed() {
        let of = |value| Packing::of_request(&headers("grpc-encoding", value));
        assert_eq!(Packing::of_request(&HeaderMap::new()), Ok(Packing::Identity));
        assert_eq!(of("identity"), Ok(Packing::Identity));
        assert_eq!(of("deflate"), Ok(Packing::Deflate));
        assert_eq!(of("gzip"), Ok(Packing::Gzip));
        let told = "unknown grpc-encoding \"br\", expected identity, deflate or gzip";
        assert_eq!(of("br").unwrap_err().to_string(), told);
    }

    #[test]
    fn a_level_is_held_against_what_the_client_accepts() {
        use ResponsePacking::{High, Low, Medium, None};
        for (level, accepted, expected) in [
            (None, "gzip,deflate", Packing::Identity),
            (Low, "identity, deflate, gzip", Packing::Gzip),
            (Low, "deflate", Packing::Deflate),
            (Medium, "identity,deflate,gzip", Packing::Deflate),
            (High, "identity,gzip", Packing::Gzip),
            (High, "identity", Packing::Identity),
        ] {
            let headers = headers("grpc-accept-encoding", accepted);
            assert_eq!(level.of_response(&headers), expected, "{level} {accepted}");
        }
        assert_eq!(High.of_response(&HeaderMap::new()), Packing::Identity);
    }

    #[test]
    fn a_damaged_message_is_refused() {
        let parts = message(b"hello hello hello hello", 9);
        for packing in [Packing::Gzip, Packing::Deflate] {
            let packed = compress(packing, &parts).unwrap().slice(FRAME_HEADER..);
            let cut = packed.slice(..packed.len() - 3);
            let followed = [&packed[..], b"x"].concat();
            for body in [cut, followed.into(), Bytes::new(), Bytes::from_static(b"plain")] {
                let error = decompress(packing, &body.into(), 1 << 20).unwrap_err().to_string();
                assert!(error.starts_with("unable to decompress "), "{error}");
            }
        }
        let error = decompress(Packing::Identity, &Rope::default(), 1).unwrap_err().to_string();
        assert!(error.contains("no grpc-encoding"), "{error}");
    }

    proptest! {
        #[test]
        fn unpacking_undoes_packing_up_to_the_limit(
            body in prop::collection::vec(any::<u8>(), 0..500),
            cut in 1_usize..100,
            packing in prop::sample::select([Packing::Gzip, Packing::Deflate].as_slice()),
        ) {
            let packed = compress(packing, &message(&body, cut)).unwrap();
            prop_assert_eq!(packed[0], 1);
            prop_assert_eq!(&packed[1..5], &u32::try_from(packed.len() - 5).unwrap().to_be_bytes()[..]);
            let packed: Rope = packed.slice(FRAME_HEADER..).into();
            prop_assert_eq!(decompress(packing, &packed, body.len()).unwrap(), Some(body.clone()));
            if let Some(less) = body.len().checked_sub(1) {
                prop_assert_eq!(decompress(packing, &packed, less).unwrap(), None);
            }
        }
    }
}
