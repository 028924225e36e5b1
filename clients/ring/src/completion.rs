use std::sync::Arc;

use nereid_ring::{Answer, Span, Status};

use crate::{Block, Error};

/// What came of a request.
#[derive(Debug)]
pub struct Completion {
    /// What [`Ring::submit`](crate::Ring::submit) returned for it.
    pub token: u64,
    /// How it went.
    pub status: Status,
    /// Whether no other completion of this request follows.
    pub is_final: bool,
    pub(crate) record: Vec<u8>,
    pub(crate) blocks: Arc<Vec<Block>>,
}

impl Completion {
    /// The answer.
    ///
    /// # Errors
    /// When the request failed, or the answer makes no sense.
    pub fn answer(&self) -> Result<Answer<'_>, Error> {
        if self.record.is_empty() {
            let message = match self.status {
                // A request of several answers ends without one.
                Status::Ok => return Ok(Answer::failed(Status::Ok, "")),
                _ => "the request's area for answers has no room for more words".to_owned(),
            };
            return Err(Error::Failed { status: self.status, message });
        }
        let answer = Answer::parse(&self.record)?;
        match answer.status {
            Status::Ok => Ok(answer),
            status => Err(Error::Failed { status, message: answer.message.to_owned() }),
        }
    }

    /// The bytes of an output where they lie; `None` when they lie in no block of the request.
    pub fn tensor(&self, data: Span) -> Option<&[u8]> {
        self.blocks.iter().find_map(|block| block.part(data))
    }

    /// The request's blocks, to be used again; `None` while other completions of it are held.
    pub fn into_blocks(self) -> Option<Vec<Block>> {
        Arc::into_inner(self.blocks)
    }
}
