use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    future::poll_fn,
    os::{fd::AsFd as _, unix::net},
    path::PathBuf,
    rc::Rc,
    task::{Poll, Waker},
};

use bytes::Bytes;
use nereid_ring_client::{Block, Completion, DataType, Error, Options, Request, Ring, Tensor};

use super::Failure;
use crate::runtime::{self, UnixStream};

/// What an answer may take beside twice the inputs.
const AREA_BYTES: usize = 1 << 20;
const BLOCK_ALIGNMENT: usize = 64;

/// The request that a load repeats.
#[derive(Clone, Debug)]
pub struct RingRequest {
    /// The server's socket.
    pub path: PathBuf,
    /// The model.
    pub model: String,
    /// Its version; may be empty.
    pub version: String,
    /// Name, type, shape and elements of each input.
    pub inputs: Vec<(String, DataType, Vec<i64>, Bytes)>,
}

impl RingRequest {
    fn area_bytes(&self) -> usize {
        AREA_BYTES + 2 * self.inputs.iter().map(|(.., data)| data.len()).sum::<usize>()
    }

    fn arena_bytes(&self) -> usize {
        let inputs = self.inputs.iter().map(|(.., data)| data.len() + BLOCK_ALIGNMENT);
        inputs.sum::<usize>() + self.area_bytes() + BLOCK_ALIGNMENT
    }
}

/// The ring of a client thread.
struct Connection {
    ring: RefCell<Ring>,
    waiting: RefCell<HashMap<u64, Waker>>,
    done: RefCell<HashMap<u64, Completion>>,
    is_lost: Cell<bool>,
}

/// A request at a time in a ring that it shares.
pub struct RingSlot {
    connection: Rc<Connection>,
    request: Rc<RingRequest>,
    /// The inputs, filled once, and the area; gone while a request is lost.
    blocks: Vec<Block>,
}

impl RingSlot {
    /// Makes `count` slots that share a ring, on the current reactor.
    pub fn open(request: &RingRequest, count: usize) -> Result<Vec<Self>, Failure> {
        let request = Rc::new(request.clone());
        let options = Options {
            arena_bytes: request.arena_bytes().saturating_mul(count) as u64,
            requests: u32::try_from(count).unwrap_or(u32::MAX),
            spin: false,
        };
        let ring = Ring::connect(&request.path, &options).map_err(broken)?;
        let socket = ring.as_fd().try_clone_to_owned().map(net::UnixStream::from);
        let socket = socket.and_then(UnixStream::adopt).map_err(broken)?;
        let connection = Rc::new(Connection {
            ring: RefCell::new(ring),
            waiting: RefCell::default(),
            done: RefCell::default(),
            is_lost: Cell::default(),
        });
        let mut slots = Vec::new();
        for _ in 0..count {
            let mut blocks = Vec::new();
            for (.., data) in &request.inputs {
                let mut block = connection.ring.borrow().allocate(data.len()).map_err(broken)?;
                block.copy_from_slice(data);
                blocks.push(block);
            }
            let area = connection.ring.borrow().allocate(request.area_bytes());
            blocks.push(area.map_err(broken)?);
            slots.push(Self { connection: connection.clone(), request: request.clone(), blocks });
        }
        runtime::spawn(&"the answers of a ring", answers(connection, socket));
        Ok(slots)
    }

    pub async fn infer(&mut self) -> Result<(), Failure> {
        let token = self.submit().map_err(broken)?;
        let connection = &self.connection;
        let completion = poll_fn(|cx| {
            if let Some(done) = connection.done.borrow_mut().remove(&token) {
                return Poll::Ready(Ok(done));
            }
            if connection.is_lost.get() {
                return Poll::Ready(Err(Failure::Broken("the ring is lost".to_owned())));
            }
            connection.waiting.borrow_mut().insert(token, cx.waker().clone());
            Poll::Pending
        })
        .await?;
        let outcome = completion.answer().map(|_| ()).map_err(|error| match error {
            Error::Failed { .. } => Failure::Refused(error.to_string()),
            error => Failure::Broken(error.to_string()),
        });
        self.blocks = completion.into_blocks().unwrap_or_default();
        outcome
    }

    fn submit(&mut self) -> Result<u64, Error> {
        let blocks = std::mem::take(&mut self.blocks);
        let request = &self.request;
        let inputs = request.inputs.iter().zip(&blocks);
        let described = Request {
            model: &request.model,
            version: &request.version,
            area: blocks.last().map(Block::span).unwrap_or_default(),
            inputs: inputs
                .map(|((name, datatype, shape, _), block)| Tensor {
                    name,
                    datatype: *datatype,
                    dims: shape.iter().copied().collect(),
                    data: block.span(),
                })
                .collect(),
            ..Request::default()
        };
        let mut ring = self.connection.ring.borrow_mut();
        let token = ring.submit(&described, blocks)?;
        ring.ring();
        Ok(token)
    }
}

/// Takes completions to those who wait for them, until the ring ends.
async fn answers(connection: Rc<Connection>, mut socket: UnixStream) {
    let lost = loop {
        match take(&connection) {
            Ok(true) => {}
            Ok(false) if Rc::strong_count(&connection) == 1 => return,
            Ok(false) => {
                let mut rings = [0; 64];
                match poll_fn(|cx| socket.poll_read(cx, &mut rings)).await {
                    Ok(1..) => {}
                    Ok(0) | Err(_) => break Error::Closed,
                }
            }
            Err(error) => break error,
        }
    };
    log::debug!("a ring ended: {lost}");
    connection.is_lost.set(true);
    let waiting = std::mem::take(&mut *connection.waiting.borrow_mut());
    waiting.into_values().for_each(Waker::wake);
}

/// Takes what is there; `false` when there is nothing to take before the next ring.
fn take(connection: &Connection) -> Result<bool, Error> {
    let next = connection.ring.borrow_mut().try_next()?;
    let Some(completion) = next else { return connection.ring.borrow().arm() };
    let token = completion.token;
    connection.done.borrow_mut().insert(token, completion);
    let waker = connection.waiting.borrow_mut().remove(&token);
    waker.into_iter().for_each(Waker::wake);
    Ok(true)
}

fn broken(error: impl ToString) -> Failure {
    Failure::Broken(error.to_string())
}
