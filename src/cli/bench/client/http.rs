use std::{future::poll_fn, io, net::TcpStream, ops, pin::Pin, task::ready};

use bytes::Bytes;
use httparse::Status;
use hyper::rt::{Read, ReadBuf, Write};
use serde::{Deserialize, de::IgnoredAny};

use super::Failure;
use crate::runtime;

const HEADERS: usize = 64;
const HEAD_MAX: usize = 64 << 10;
const BODY_MAX: usize = 1 << 30;
const BUFFER: usize = 16 << 10;

/// An HTTP/1.1 connection that is kept alive, on the current reactor.
pub struct HttpConnection {
    stream: runtime::TcpStream,
    buffer: Vec<u8>,
    filled: usize,
}

/// An answer, its body in the connection's buffer.
pub struct Answer<'a> {
    /// The status code.
    pub status: u16,
    /// The length of the JSON before binary tensors; the whole body without them.
    json: usize,
    body: &'a [u8],
}

impl Answer<'_> {
    /// The JSON part of the body.
    ///
    /// # Errors
    /// When the status is no success: with the server's own words.
    pub fn json(&self) -> Result<&[u8], Failure> {
        #[derive(Deserialize)]
        struct Refusal {
            error: String,
        }
        if self.status == 200 {
            let cut_off = || bad_answer("its header says that it has more JSON than it is long");
            return self.body.get(..self.json).ok_or_else(cut_off);
        }
        let words = serde_json::from_slice(self.body).map_or_else(
            |_| String::from_utf8_lossy(self.body).into_owned(),
            |refusal: Refusal| refusal.error,
        );
        Err(Failure::Refused(format!("HTTP {}: {words}", self.status)))
    }
}

impl HttpConnection {
    /// Takes a connected socket.
    ///
    /// # Errors
    /// When the reactor refuses it.
    pub fn new(socket: TcpStream) -> Result<Self, Failure> {
        let stream = runtime::TcpStream::adopt(socket).map_err(broken)?;
        Ok(Self { stream, buffer: vec![0; BUFFER], filled: 0 })
    }

    /// Sends a request, head and body, and waits for the answer.
    ///
    /// # Errors
    /// When the connection is lost or the answer cannot be read.
    pub async fn exchange(&mut self, request: &[u8]) -> Result<Answer<'_>, Failure> {
        self.write(request).await.map_err(broken)?;
        self.filled = 0;
        let head = loop {
            self.read().await.map_err(broken)?;
            match Head::parse(self.received()).map_err(|problem| broken_answer(&problem))? {
                Some(head) if head.status >= 200 => break head,
                // What announces the answer, such as 100 Continue, is passed over.
                Some(head) => {
                    self.buffer.copy_within(head.length..self.filled, 0);
                    self.filled -= head.length;
                }
                None if self.filled > HEAD_MAX => {
                    return Err(broken_answer("its head is too long"));
                }
                None => {}
            }
        };
        let body = match head.body {
            BodyLength::Known(length) if length > BODY_MAX => {
                return Err(broken_answer("it is too long"));
            }
            BodyLength::Known(length) => {
                let end = head.length + length;
                self.reserve(end);
                while self.filled < end {
                    self.read().await.map_err(broken)?;
                }
                head.length..end
            }
            BodyLength::Chunked => self.read_chunks(head.length).await?,
        };
        let body = self.buffer.get(body).unwrap_or_default();
        Ok(Answer { status: head.status, json: head.json.unwrap_or(body.len()), body })
    }

    /// Reads the chunks of a body that begins at `start` and joins them there.
    async fn read_chunks(&mut self, start: usize) -> Result<ops::Range<usize>, Failure> {
        let (mut joined, mut next) = (start, start);
        loop {
            let rest = self.received().get(next..).unwrap_or_default();
            let size = httparse::parse_chunk_size(rest)
                .map_err(|_| broken_answer("a chunk has no valid size"))?;
            if let Status::Complete((line, size)) = size {
                let size = usize::try_from(size).unwrap_or(usize::MAX);
                if size > BODY_MAX || joined > BODY_MAX {
                    return Err(broken_answer("it is too long"));
                }
                let (data, end) = (next + line, next + line + size);
                // The line break that ends the chunk.
                if self.filled >= end + 2 {
                    self.buffer.copy_within(data..end, joined);
                    (joined, next) = (joined + size, end + 2);
                    if size == 0 {
                        return Ok(start..joined);
                    }
                    continue;
                }
            }
            self.read().await.map_err(broken)?;
        }
    }

    fn received(&self) -> &[u8] {
        self.buffer.get(..self.filled).unwrap_or_default()
    }

    fn reserve(&mut self, size: usize) {
        if self.buffer.len() < size {
            self.buffer.resize(size, 0);
        }
    }

    async fn read(&mut self) -> io::Result<()> {
        if self.filled == self.buffer.len() {
            self.reserve(2 * self.filled);
        }
        let Self { stream, buffer, filled } = self;
        let count = poll_fn(|cx| {
            let mut room = ReadBuf::new(buffer.get_mut(*filled..).unwrap_or_default());
            ready!(Read::poll_read(Pin::new(&mut *stream), cx, room.unfilled()))?;
            io::Result::Ok(room.filled().len()).into()
        })
        .await?;
        if count == 0 {
            let problem = "the server closed the connection";
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, problem));
        }
        *filled += count;
        Ok(())
    }

    async fn write(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let stream = &mut self.stream;
            let count = poll_fn(|cx| Write::poll_write(Pin::new(&mut *stream), cx, bytes)).await?;
            if count == 0 {
                return Err(io::ErrorKind::WriteZero.into());
            }
            bytes = bytes.get(count..).unwrap_or_default();
        }
        Ok(())
    }
}

#[derive(Debug, PartialEq, Eq)]
struct Head {
    length: usize,
    status: u16,
    json: Option<usize>,
    body: BodyLength,
}

#[derive(Debug, PartialEq, Eq)]
enum BodyLength {
    Known(usize),
    Chunked,
}

impl Head {
    /// Reads the head of an answer, once it is there whole.
    fn parse(bytes: &[u8]) -> Result<Option<Self>, String> {
        let mut headers = [httparse::EMPTY_HEADER; HEADERS];
        let mut answer = httparse::Response::new(&mut headers);
        let length = match answer.parse(bytes) {
            Ok(Status::Complete(length)) => length,
            Ok(Status::Partial) => return Ok(None),
            Err(error) => return Err(format!("it is not HTTP ({error})")),
        };
        let status = answer.code.unwrap_or_default();
        let mut head = Self { length, status, json: None, body: BodyLength::Known(0) };
        for header in answer.headers.iter() {
            let number = || {
                let text = std::str::from_utf8(header.value).ok();
                text.and_then(|text| text.trim().parse().ok()).ok_or_else(|| {
                    let value = String::from_utf8_lossy(header.value);
                    format!("its {} is no number but '{value}'", header.name)
                })
            };
            if header.name.eq_ignore_ascii_case("content-length") {
                head.body = BodyLength::Known(number()?);
            } else if header.name.eq_ignore_ascii_case("inference-header-content-length") {
                head.json = Some(number()?);
            } else if header.name.eq_ignore_ascii_case("transfer-encoding")
                && header.value.eq_ignore_ascii_case(b"chunked")
            {
                head.body = BodyLength::Chunked;
            }
        }
        Ok(Some(head))
    }
}

/// A POST of an inference at a time.
pub struct HttpSlot {
    connection: HttpConnection,
    request: Bytes,
}

impl HttpSlot {
    pub fn new(socket: TcpStream, request: Bytes) -> Result<Self, Failure> {
        Ok(Self { connection: HttpConnection::new(socket)?, request })
    }

    pub async fn infer(&mut self) -> Result<(), Failure> {
        #[derive(Deserialize)]
        struct Inferred {
            outputs: Vec<IgnoredAny>,
        }
        let answer = self.connection.exchange(&self.request).await?;
        match serde_json::from_slice::<Inferred>(answer.json()?) {
            Ok(inferred) if inferred.outputs.is_empty() => Err(bad_answer("it has no outputs")),
            Ok(_) => Ok(()),
            Err(error) => Err(bad_answer(&error.to_string())),
        }
    }
}

fn broken(error: io::Error) -> Failure {
    Failure::Broken(error.to_string())
}

/// The connection's bytes are out of step.
fn broken_answer(problem: &str) -> Failure {
    Failure::Broken(format!("cannot read the answer: {problem}"))
}

fn bad_answer(problem: &str) -> Failure {
    Failure::Refused(format!("cannot read the answer: {problem}"))
}

#[cfg(test)]
mod tests {
    use std::{io::Write as _, net::TcpListener, sync::mpsc, thread, time::Duration};

    use super::*;
    use crate::runtime::{Driver, DriverChoice, ReactorSettings, Reactors, Topology};

    #[test]
    fn heads_are_read_when_they_are_whole() {
        let text = b"HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\
            Inference-Header-Content-Length:3\r\n\r\n";
        for cut in 0..text.len() {
            assert_eq!(Head::parse(&text[..cut]), Ok(None), "{cut}");
        }
        let body = BodyLength::Known(7);
        let head = Head { length: text.len(), status: 200, json: Some(3), body };
        assert_eq!(Head::parse(text), Ok(Some(head)));
        for bad in ["nonsense\r\n\r\n", "HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n"] {
            assert!(Head::parse(bad.as_bytes()).is_err(), "{bad}");
        }
    }

    /// What a slot makes of answers that arrive in pieces, one inference after the other.
    fn outcomes(answers: &'static [&'static [&'static str]]) -> Vec<Result<(), Failure>> {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let socket = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let server = thread::spawn(move || {
            let (mut socket, _) = listener.accept().unwrap();
            for answer in answers {
                io::Read::read_exact(&mut socket, &mut [0; 4]).unwrap();
                for piece in *answer {
                    socket.write_all(piece.as_bytes()).unwrap();
                    thread::sleep(Duration::from_millis(5));
                }
            }
        });
        let settings = ReactorSettings {
            count: 1,
            driver: DriverChoice::Only(Driver::Epoll),
            idle_spin: Duration::ZERO,
            mailbox_capacity: 8,
        };
        let reactors = Reactors::start(&settings, &Topology::read().unwrap()).unwrap();
        let (report, reported) = mpsc::channel();
        let inferring = move || {
            runtime::spawn(&"a test", async move {
                let mut slot = HttpSlot::new(socket, Bytes::from_static(b"ask\n")).unwrap();
                for _ in answers {
                    report.send(slot.infer().await).unwrap();
                }
            });
        };
        reactors.handles()[0].send(Box::new(inferring)).unwrap();
        let outcomes = reported.iter().collect();
        reactors.stop();
        server.join().unwrap();
        outcomes
    }

    #[test]
    fn answers_are_judged_one_after_the_other() {
        let refused = |message: &str| Err(Failure::Refused(message.to_owned()));
        let got = outcomes(&[
            &[
                "HTTP/1.1 200 OK\r\nContent-Length: 20\r\n",
                "Inference-Header-Content-Length: 16\r\n\r\n{\"outp",
                "uts\":[{}]}\0\0\0\0",
            ],
            &[
                "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n7",
                "\r\n{\"outpu\r\n",
                "8\r\nts\":[1]}\r",
                "\n0\r\n\r",
                "\n",
            ],
            &["HTTP/1.1 400 Bad Request\r\nContent-Length: 14\r\n\r\n{\"error\":\"no\"}"],
            &["HTTP/1.1 503 Busy\r\nContent-Length: 4\r\n\r\nbusy"],
            &["HTTP/1.1 200 OK\r\nContent-Length: 14\r\n\r\n{\"outputs\":[]}"],
            &["HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nno"],
            &["nonsense\r\n\r\n"],
        ]);
        assert_eq!(got[..3], [Ok(()), Ok(()), refused("HTTP 400: no")]);
        assert_eq!(got[3], refused("HTTP 503: busy"));
        assert_eq!(got[4], refused("cannot read the answer: it has no outputs"));
        assert!(matches!(&got[5], Err(Failure::Refused(_))), "{:?}", got[5]);
        assert!(matches!(&got[6], Err(Failure::Broken(_))), "{:?}", got[6]);
    }
}
