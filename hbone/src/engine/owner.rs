//! What becomes of a stream, for its owner: kept until it asks, or told by a call.

use std::collections::VecDeque;
use std::task::{Context, Poll, Waker};

use crate::{Ended, Error, Response};

/// How a stream's owner learns what becomes of it.
pub(crate) enum Owner {
    /// It asks. Mostly there is nothing to tell, and then no memory is held for it.
    Asks(Option<Box<News>>),
    /// It is called at the end, and asks for nothing.
    IsCalled(Call),
}

#[derive(Default)]
pub(crate) struct News {
    /// A client's answer.
    answer: Option<Box<Answer>>,
    /// How the stream ended.
    end: Option<Box<Ended>>,
    /// Who waits for one of these.
    waker: Option<Waker>,
}

type Answer = Result<Response, Error>;

/// What is called when a relay ends.
pub(crate) type Call = Box<dyn FnOnce(Ended)>;

/// Calls that are due. They are somebody else's code, which may use the connection: they are made when
/// nobody is in the middle of a turn.
pub(crate) type Calls = VecDeque<(Call, Ended)>;

// === impl Owner ===

impl Owner {
    pub(crate) fn tell_answer(&mut self, answer: Answer) {
        if let Self::Asks(news) = self {
            let news = news.get_or_insert_default();
            news.answer = Some(Box::new(answer));
            news.wake();
        }
    }

    pub(crate) fn tell_end(&mut self, ended: Ended, calls: &mut Calls) {
        match std::mem::take(self) {
            Self::IsCalled(call) => calls.push_back((call, ended)),
            Self::Asks(news) => {
                let mut news = news.unwrap_or_default();
                news.end = Some(Box::new(ended));
                news.wake();
                *self = Self::Asks(Some(news));
            }
        }
    }

    pub(crate) fn poll_answer(&mut self, cx: &mut Context<'_>) -> Poll<Answer> {
        self.poll(cx, |news| news.answer.take())
    }

    pub(crate) fn poll_end(&mut self, cx: &mut Context<'_>) -> Poll<Ended> {
        self.poll(cx, |news| news.end.take())
    }

    pub(crate) fn take_end(&mut self) -> Option<Ended> {
        self.take(|news| news.end.take())
    }

    pub(crate) fn has_end(&self) -> bool {
        matches!(self, Self::Asks(Some(news)) if news.end.is_some())
    }

    fn poll<T>(
        &mut self,
        cx: &mut Context<'_>,
        what: impl FnOnce(&mut News) -> Option<Box<T>>,
    ) -> Poll<T> {
        if let Some(taken) = self.take(what) {
            return Poll::Ready(taken);
        }
        if let Self::Asks(news) = self {
            news.get_or_insert_default().waker = Some(cx.waker().clone());
        }
        Poll::Pending
    }

    fn take<T>(&mut self, what: impl FnOnce(&mut News) -> Option<Box<T>>) -> Option<T> {
        let Self::Asks(place) = self else { return None };
        let news = place.as_mut()?;
        let taken = what(news);
        if news.is_empty() {
            *place = None;
        }
        taken.map(|taken| *taken)
    }
}

impl Default for Owner {
    fn default() -> Self {
        Self::Asks(None)
    }
}

// === impl News ===

impl News {
    fn wake(&mut self) {
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }

    fn is_empty(&self) -> bool {
        self.answer.is_none() && self.end.is_none() && self.waker.is_none()
    }
}
