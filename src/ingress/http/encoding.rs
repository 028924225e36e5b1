//! `Content-Encoding` and `Accept-Encoding`: gzip and deflate, with a limit on what a body may become.

use std::{
    fmt::Display,
    io::{self, BufRead, Read, Write},
};

use bytes::Bytes;
use flate2::{
    Compression,
    bufread::{GzDecoder, ZlibDecoder},
    write::{GzEncoder, ZlibEncoder},
};

use crate::inference::{Error, Rope};

/// How a body is packed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Encoding {
    /// Not at all.
    #[default]
    Identity,
    /// The zlib format, which HTTP calls `deflate`.
    Deflate,
    /// The gzip format.
    Gzip,
}

/// The value of `Accept-Encoding` to send with the error of [`Encoding::of_request`].
pub const ACCEPTED: &str = "gzip, deflate";

impl Encoding {
    const ALL: [Self; 3] = [Self::Identity, Self::Deflate, Self::Gzip];

    /// The name in headers.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Identity => "identity",
            Self::Deflate => "deflate",
            Self::Gzip => "gzip",
        }
    }

    /// How a request's body is packed, by its `Content-Encoding`.
    ///
    /// # Errors
    /// When it is in no way that we know.
    pub fn of_request(content_encoding: Option<&[u8]>) -> Result<Self, Error> {
        let Some(name) = content_encoding else { return Ok(Self::Identity) };
        let name = String::from_utf8_lossy(name);
        match name.trim_ascii() {
            "" => Ok(Self::Identity),
            name => Self::by_name(name).ok_or_else(|| Error::Unsupported {
                detail: "Unsupported compression type".to_owned(),
            }),
        }
    }

    /// How to pack the answer, by the request's `Accept-Encoding`: in the way of the largest weight,
    /// the first of equals.
    pub fn of_response(accept_encoding: Option<&[u8]>) -> Self {
        let Some(accepted) = accept_encoding else { return Self::Identity };
        let accepted = String::from_utf8_lossy(accepted);
        let mut best = (Self::Identity, 0.0);
        for item in accepted.split(',') {
            let (name, parameters) = item.split_once(';').unwrap_or((item, ""));
            let weight = match parameters.trim_ascii() {
                "" => Some(1.0),
                parameters => parameters.strip_prefix("q=").and_then(|q| q.parse::<f64>().ok()),
            };
            if let (Some(encoding), Some(weight)) = (Self::by_name(name.trim_ascii()), weight)
                && weight > best.1
            {
                best = (encoding, weight);
            }
        }
        best.0
    }

    fn by_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|encoding| name.eq_ignore_ascii_case(encoding.name()))
    }
}

/// Unpacks a body that may become `limit` bytes.
///
/// # Errors
/// When the body is damaged, is followed by something else or becomes larger.
pub fn decompress(encoding: Encoding, body: Rope, limit: usize) -> Result<Rope, Error> {
    Unpacking::new(encoding, body, limit).finish()
}

/// A body that is being unpacked: in steps, because how much comes out shows only as it does.
pub struct Unpacking {
    encoding: Encoding,
    packed_len: usize,
    limit: usize,
    decoder: Decoder,
    unpacked: Vec<u8>,
}

enum Decoder {
    Identity(RopeReader),
    Deflate(Box<ZlibDecoder<RopeReader>>),
    Gzip(Box<GzDecoder<RopeReader>>),
}

impl Unpacking {
    /// Begins to unpack a body that may become `limit` bytes.
    pub fn new(encoding: Encoding, body: Rope, limit: usize) -> Self {
        let packed_len = body.len();
        let reader = RopeReader { rope: body, piece: 0, offset: 0 };
        let decoder = match encoding {
            Encoding::Identity => Decoder::Identity(reader),
            Encoding::Deflate => Decoder::Deflate(Box::new(ZlibDecoder::new(reader))),
            Encoding::Gzip => Decoder::Gzip(Box::new(GzDecoder::new(reader))),
        };
        Self { encoding, packed_len, limit, decoder, unpacked: Vec::new() }
    }

    /// Goes on until `pause` bytes have come out in all, which returns `None`, or to the end if that is
    /// nearer.
    ///
    /// # Errors
    /// When the body is damaged, is followed by something else or becomes larger than it may.
    pub fn advance(&mut self, pause: usize) -> Result<Option<Rope>, Error> {
        // One byte past the limit tells that it is too much.
        let pause = pause.min(self.limit.saturating_add(1));
        let wanted = pause.saturating_sub(self.unpacked.len());
        let got = self.decoder.reader().take(wanted as u64).read_to_end(&mut self.unpacked);
        let got = got.map_err(|error| self.failed(&error))?;
        if self.unpacked.len() > self.limit {
            return Err(Error::malformed(format!(
                "{} request body of {} bytes decompresses to more than the limit of {} bytes",
                self.encoding.name(),
                self.packed_len,
                self.limit
            )));
        }
        if got == wanted {
            return Ok(None);
        }
        if self.decoder.source().fill_buf().is_ok_and(|rest| !rest.is_empty()) {
            return Err(self.failed(&"unexpected data behind its end"));
        }
        Ok(Some(std::mem::take(&mut self.unpacked).into()))
    }

    /// Goes on to the end.
    ///
    /// # Errors
    /// As [`advance`](Self::advance).
    pub fn finish(mut self) -> Result<Rope, Error> {
        // `None` is not to be had: the limit stops it before.
        self.advance(usize::MAX)?.ok_or_else(|| self.failed(&"it has no end"))
    }

    fn failed(&self, why: &dyn Display) -> Error {
        Error::malformed(format!(
            "unable to decompress {} request body: {why}",
            self.encoding.name()
        ))
    }
}

impl Decoder {
    fn reader(&mut self) -> &mut dyn Read {
        match self {
            Self::Identity(reader) => reader,
            Self::Deflate(decoder) => decoder,
            Self::Gzip(decoder) => decoder,
        }
    }

    fn source(&mut self) -> &mut RopeReader {
        match self {
            Self::Identity(reader) => reader,
            Self::Deflate(decoder) => decoder.get_mut(),
            Self::Gzip(decoder) => decoder.get_mut(),
        }
    }
}

/// Packs an answer that is the joined `parts`.
///
/// # Errors
/// When the packer fails; the answer can then be sent as it is.
pub fn compress<'a>(
    encoding: Encoding,
    parts: impl Iterator<Item = &'a [u8]>,
) -> Result<Bytes, Error> {
    let packed = match encoding {
        Encoding::Identity => Ok(parts.flatten().copied().collect()),
        Encoding::Deflate => {
            let mut encoder = ZlibEncoder::new(Vec::new(), Compression::default());
            write_all(&mut encoder, parts).and_then(|()| encoder.finish())
        }
        Encoding::Gzip => {
            let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
            write_all(&mut encoder, parts).and_then(|()| encoder.finish())
        }
    };
    packed.map(Bytes::from).map_err(|error| Error::Internal {
        detail: format!("unable to compress response: {error}"),
    })
}

fn write_all<'a>(
    encoder: &mut impl Write,
    mut parts: impl Iterator<Item = &'a [u8]>,
) -> io::Result<()> {
    parts.try_for_each(|part| encoder.write_all(part))
}

/// Reads a rope's pieces one after the other.
struct RopeReader {
    rope: Rope,
    piece: usize,
    offset: usize,
}

impl BufRead for RopeReader {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        let piece = self.rope.pieces().get(self.piece).map(AsRef::as_ref).unwrap_or_default();
        Ok(piece.get(self.offset..).unwrap_or_default())
    }

    fn consume(&mut self, count: usize) {
        self.offset += count;
        if self.rope.pieces().get(self.piece).is_some_and(|piece| self.offset >= piece.len()) {
            self.piece += 1;
            self.offset = 0;
        }
    }
}

impl Read for RopeReader {
    fn read(&mut self, target: &mut [u8]) -> io::Result<usize> {
        let count = self.fill_buf()?.read(target)?;
        self.consume(count);
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_request_says_how_it_is_packed() {
        for (header, expected) in [
            (None, Ok(Encoding::Identity)),
            (Some(""), Ok(Encoding::Identity)),
            (Some("identity"), Ok(Encoding::Identity)),
            (Some("gzip"), Ok(Encoding::Gzip)),
            (Some(" Deflate "), Ok(Encoding::Deflate)),
            (Some("br"), Err("Unsupported compression type")),
        ] {
            let encoding = Encoding::of_request(header.map(str::as_bytes));
            assert_eq!(
                encoding.map_err(|error| error.to_string()),
                expected.map_err(str::to_owned)
            );
        }
    }

    #[test]
    fn the_answer_is_packed_in_the_preferred_way() {
        for (header, expected) in [
            (None, Encoding::Identity),
            (Some(""), Encoding::Identity),
            (Some("gzip"), Encoding::Gzip),
            (Some("gzip, deflate"), Encoding::Gzip),
            (Some("deflate,gzip"), Encoding::Deflate),
            (Some("gzip;q=0.5, deflate;q=0.8"), Encoding::Deflate),
            (Some("gzip;q=0.5, identity;q=0.7"), Encoding::Identity),
            (Some("gzip;q=0"), Encoding::Identity),
            (Some("gzip;q=x, deflate; q=0.1"), Encoding::Deflate),
            (Some("br, *"), Encoding::Identity),
        ] {
            assert_eq!(Encoding::of_response(header.map(str::as_bytes)), expected, "{header:?}");
        }
    }

    #[test]
    fn a_bomb_is_refused_and_what_just_fits_is_not() {
        const LIMIT: usize = 1 << 20;
        for encoding in [Encoding::Gzip, Encoding::Deflate] {
            for (size, fits) in [(LIMIT, true), (LIMIT + 1, false), (LIMIT * 16, false)] {
                let zeros = Bytes::from(vec![0; size]);
                let packed = compress(encoding, [&zeros[..]].into_iter()).unwrap();
                let length = packed.len();
                let unpacked = decompress(encoding, packed.into(), LIMIT);
                match unpacked {
                    Ok(unpacked) => assert!(fits && unpacked.len() == size),
                    Err(error) => {
                        assert!(!fits);
                        assert_eq!(
                            error.to_string(),
                            format!(
                                "{} request body of {length} bytes decompresses to more than the \
                                 limit of {LIMIT} bytes",
                                encoding.name()
                            )
                        );
                    }
                }
            }
        }
    }

    #[test]
    fn unpacking_pauses_where_it_is_told() {
        const SIZE: usize = 10_000;
        let zeros = Bytes::from(vec![0; SIZE]);
        for encoding in [Encoding::Gzip, Encoding::Deflate] {
            let packed = Rope::from(compress(encoding, [&zeros[..]].into_iter()).unwrap());
            let mut unpacking = Unpacking::new(encoding, packed, SIZE);
            for pause in [1, 1000, 1000, 999, SIZE] {
                let before = unpacking.unpacked.len();
                assert!(unpacking.advance(pause).unwrap().is_none(), "whole at {pause}");
                assert_eq!(unpacking.unpacked.len(), pause.max(before));
            }
            assert_eq!(unpacking.finish().unwrap().into_bytes(), zeros);
        }
    }

    #[test]
    fn a_damaged_body_is_refused() {
        let part = Bytes::from_static(b"hello hello hello");
        for encoding in [Encoding::Gzip, Encoding::Deflate] {
            let packed = compress(encoding, [&part[..]].into_iter()).unwrap();
            let cut = packed.slice(..packed.len() - 3);
            let mut followed = packed.to_vec();
            followed.push(7);
            let mut flipped = packed.to_vec();
            flipped[12] ^= 0x55;
            for body in [cut.to_vec(), followed, flipped, Vec::new(), b"plain".to_vec()] {
                let error = decompress(encoding, body.into(), 1 << 20).unwrap_err().to_string();
                assert!(error.starts_with("unable to decompress "), "{error}");
            }
        }
    }

    proptest! {
        #[test]
        fn unpacking_undoes_packing_whatever_the_pieces(
            parts in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..200), 0..5),
            cut in 1_usize..40,
            encoding in prop::sample::select(Encoding::ALL.as_slice()),
        ) {
            let parts: Vec<Bytes> = parts.into_iter().map(Bytes::from).collect();
            let packed = compress(encoding, parts.iter().map(|part| &part[..])).unwrap();
            let mut body = Rope::default();
            for piece in packed.chunks(cut) {
                body.push(Bytes::copy_from_slice(piece));
            }
            let unpacked = decompress(encoding, body, 1 << 20).unwrap().into_bytes();
            prop_assert_eq!(unpacked, parts.concat());
        }
    }
}
