//! The one task of a client that takes its submissions, and a task for each request in flight.

use std::{
    future::{Future as _, poll_fn},
    pin::{Pin, pin},
    rc::Rc,
    task::{Context, Poll, ready},
};

use nereid_ring::{Corrupt, Request, Span, Status, WAITS_FOR_ROOM, WAITS_FOR_WORK};

use super::{
    answer::Places,
    client::{Client, Taken},
    request,
};
use crate::{
    inference::Error,
    ingress::first_poll::FirstPoll,
    runtime::{self, Draining, ReplyReceiver, draining, yield_now},
    serving::Reply,
};

/// Submissions that are taken before others on the reactor have their turn.
const TURN: usize = 32;

/// Rings of a client that are heard before others on the reactor have their turn: it may ring without
/// an end.
const RINGS: u32 = 32;

/// Why a client is no longer served.
enum End {
    /// Its socket is closed: it has left, or it is dead.
    Left,
    /// It has broken the rules.
    Corrupt(Corrupt),
    /// The server stops, and the client has its answers.
    Drained,
}

impl From<Corrupt> for End {
    fn from(corrupt: Corrupt) -> Self {
        Self::Corrupt(corrupt)
    }
}

/// What a client's socket or the server has to say.
enum Event {
    Rung,
    Left,
    Drain,
}

/// Serves a client until it leaves, breaks the rules, or the server stops. What it has in flight then is
/// given up; its memory goes with the last request that reads it.
pub async fn serve(client: &Rc<Client>, spins: bool) {
    let mut turns = pin!(run(client, spins));
    match poll_fn(|cx| client.poll_turns(|cx| turns.as_mut().poll(cx), cx)).await {
        End::Left => log::debug!("a client of the ring has left"),
        End::Corrupt(corrupt) => log::warn!("a client of the ring is sent away: {corrupt}"),
        End::Drained => {}
    }
    client.cancel_all();
}

async fn run(client: &Rc<Client>, spins: bool) -> End {
    let mut drain = draining();
    let (mut first_poll, mut rings) = (FirstPoll::default(), 0);
    loop {
        let is_busy = match take_turn(client, &mut first_poll, tell).await {
            Ok(is_busy) => is_busy,
            Err(corrupt) => return corrupt.into(),
        };
        let event = if is_busy || spins {
            client.set_busy(is_busy);
            yield_now().await;
            client.set_busy(false);
            poll_fn(|cx| Poll::Ready(poll_event(client, &mut drain, cx))).await
        } else {
            let event = match sleep(client, &mut drain).await {
                Ok(event) => Poll::Ready(event),
                Err(corrupt) => return corrupt.into(),
            };
            let_others(&mut rings).await;
            event
        };
        match event {
            Poll::Ready(Event::Left) => return End::Left,
            Poll::Ready(Event::Drain) => return finish(client).await,
            Poll::Ready(Event::Rung) | Poll::Pending => client.look_for_room(),
        }
    }
}

/// Takes what waits, as far as there is room for the completions; `true` when there may be more.
async fn take_turn<F: Future<Output = ()> + 'static>(
    client: &Rc<Client>,
    first_poll: &mut FirstPoll<F>,
    tell: impl Fn(Begun) -> F,
) -> Result<bool, Corrupt> {
    client.look()?;
    let mut description = Vec::new();
    for _ in 0..TURN {
        if !client.has_room()? {
            return Ok(false);
        }
        let Some(taken) = client.take(&mut description)? else { return Ok(false) };
        let mut begun = take_in(client, taken, &description).await;
        poll_fn(|cx| {
            if let Some(begun) = begun.take() {
                first_poll.give(&"a request of the ring", tell(begun), cx);
            }
            Poll::Ready(())
        })
        .await;
    }
    client.has_work()
}

/// Sleeps until there is something to do.
async fn sleep(client: &Client, drain: &mut Draining) -> Result<Event, Corrupt> {
    let has_room = client.has_room()?;
    client.bell().arm(if has_room { WAITS_FOR_WORK } else { WAITS_FOR_ROOM });
    let could_go_on = client.has_room()? && (client.has_work()? || client.is_crowded());
    let event = match could_go_on {
        true => Event::Rung,
        false => poll_fn(|cx| poll_event(client, drain, cx)).await,
    };
    client.bell().disarm();
    Ok(event)
}

fn poll_event(client: &Client, drain: &mut Draining, cx: &mut Context<'_>) -> Poll<Event> {
    if Pin::new(drain).poll(cx).is_ready() {
        return Poll::Ready(Event::Drain);
    }
    let mut rings = [0; 64];
    let read = client.socket.borrow_mut().poll_read(cx, &mut rings);
    match read {
        Poll::Ready(Ok(1..)) => Poll::Ready(Event::Rung),
        Poll::Ready(Ok(0) | Err(_)) => Poll::Ready(Event::Left),
        // What the bell asked for may have changed: it is asked anew.
        Poll::Pending if client.is_to_look() => Poll::Ready(Event::Rung),
        Poll::Pending => Poll::Pending,
    }
}

/// Counts a ring; now and then others on the reactor have their turn.
async fn let_others(rings: &mut u32) {
    *rings += 1;
    if *rings == RINGS {
        *rings = 0;
        yield_now().await;
    }
}

/// Waits for the answers that are still to come.
async fn finish(client: &Client) -> End {
    client.end();
    let mut rings = 0;
    loop {
        let end = poll_fn(|cx| {
            if client.is_idle() {
                return Poll::Ready(Some(End::Drained));
            }
            let mut bytes = [0; 64];
            let read = ready!(client.socket.borrow_mut().poll_read(cx, &mut bytes));
            Poll::Ready((!matches!(read, Ok(1..))).then_some(End::Left))
        });
        if let Some(end) = end.await {
            return end;
        }
        client.look_for_room();
        let_others(&mut rings).await;
    }
}

/// A request that the server has, and whom to tell what comes of it.
struct Begun {
    client: Rc<Client>,
    key: usize,
    places: Places,
    replies: Replies,
}

async fn take_in(client: &Rc<Client>, taken: Taken, description: &[u8]) -> Option<Begun> {
    match taken {
        Taken::Cancel { token } => client.cancel(token),
        Taken::Nonsense { token, error } => {
            log::debug!("a client of the ring submitted nonsense: {error}");
            let key = client.begin(token);
            client.put_last(key, Status::InvalidArgument, Span::default());
        }
        Taken::Request { token } => {
            let key = client.begin(token);
            let mut places = Places::in_area(&client.memory, Request::area_of(description));
            match begin(client, description, &mut places).await {
                Ok(answer) => {
                    let replies = Replies { answer, held: None };
                    return Some(Begun { client: client.clone(), key, places, replies });
                }
                Err(error) => {
                    let laid = places.lay_out_failure(&error);
                    let (status, answer) = places.put(laid).await;
                    client.put_last(key, status, answer);
                }
            }
        }
    }
    None
}

async fn begin(
    client: &Client,
    description: &[u8],
    places: &mut Places,
) -> Result<ReplyReceiver<Reply>, Error> {
    let described = Request::parse(description);
    let described = described.map_err(|error| Error::malformed(error.to_string()))?;
    places.choose(&described)?;
    let pool = client.server.pool();
    let (mut request, large) = request::infer_request(&client.memory, pool, &described)?;
    if !large.is_empty() {
        request::copy(large, &mut request, pool).await?;
    }
    client.server.infer(request, places.lend(&described))
}

/// The replies to a request, of which each can tell whether it is the last.
struct Replies {
    answer: ReplyReceiver<Reply>,
    /// One that came with another before it.
    held: Option<Reply>,
}

enum Next {
    /// Others, or their end, are still to come.
    More(Reply),
    Last(Reply),
    /// No other comes. The model may have ended without telling why.
    End {
        is_told: bool,
    },
    /// The client has given the request up.
    Cancelled,
}

impl Replies {
    fn poll(&mut self, client: &Client, key: usize, cx: &mut Context<'_>) -> Poll<Next> {
        if client.is_cancelled(key) {
            return Poll::Ready(Next::Cancelled);
        }
        let next = match self.held.take() {
            Some(held) => Poll::Ready(Some(held)),
            None => self.answer.poll_receive(cx),
        };
        let reply = match next {
            Poll::Ready(Some(reply)) => reply,
            Poll::Ready(None) => return Poll::Ready(Next::End { is_told: self.is_end_told() }),
            Poll::Pending => return client.poll_cancelled(key, cx).map(|()| Next::Cancelled),
        };
        Poll::Ready(match self.answer.poll_receive(cx) {
            Poll::Ready(None) if self.is_end_told() => Next::Last(reply),
            Poll::Ready(next) => {
                self.held = next;
                Next::More(reply)
            }
            Poll::Pending => Next::More(reply),
        })
    }

    fn is_end_told(&self) -> bool {
        self.answer.end().is_some_and(|end| end != runtime::End::Dropped)
    }
}

/// Tells a client what comes of its request.
#[expect(clippy::manual_async_fn, reason = "an argument of an `async fn` lies in its future twice")]
fn tell(mut begun: Begun) -> impl Future<Output = ()> {
    async move {
        let key = begun.key;
        let last = loop {
            let Begun { client, places, replies, .. } = &mut begun;
            match poll_fn(|cx| replies.poll(client, key, cx)).await {
                Next::Cancelled => {
                    // A model that runs may go on writing outputs, where the client would put something else.
                    if places.take_back() {
                        poll_fn(|cx| replies.answer.poll_receive(cx)).await;
                    }
                    break places.lay_out_failure(&Error::Cancelled);
                }
                Next::End { is_told: true } => {
                    return client.put_last(key, Status::Ok, Span::default());
                }
                Next::End { is_told: false } => break places.lay_out_failure(&Error::unanswered()),
                Next::Last(reply) => break places.lay_out(reply),
                Next::More(reply) => {
                    let laid = places.lay_out(reply);
                    let (status, answer) = places.put(laid).await;
                    if poll_fn(|cx| client.poll_room(key, cx)).await {
                        client.put_more(key, status, answer);
                    }
                }
            }
        };
        let (status, answer) = begun.places.put(last).await;
        begun.client.put_last(key, status, answer);
    }
}
