//! A link that was asked of the supervisor.

use crate::wire::protocol::RequestId;

/// A link that was asked for, by a thread that waits for it.
#[derive(Debug)]
pub(super) struct Request {
    /// Ours; the supervisor's repeat themselves when another one takes its place.
    pub(super) number: u64,
    id: RequestId,
    answer: Option<Answer>,
}

#[derive(Debug)]
pub(super) enum Answer {
    Linked,
    /// There are as many workers as there may be.
    AtLimit,
    Failed(String),
    /// The supervisor is gone.
    Lost,
}

impl Request {
    pub(super) fn new(number: u64, id: RequestId) -> Self {
        Self {
            number,
            id,
            answer: None,
        }
    }

    pub(super) fn is_answered(&self) -> bool {
        self.answer.is_some()
    }

    pub(super) fn into_answer(self) -> Option<Answer> {
        self.answer
    }

    pub(super) fn awaits(&self, id: RequestId) -> bool {
        self.id == id && self.answer.is_none()
    }

    pub(super) fn answer(&mut self, answer: Result<(), Option<String>>) {
        self.answer = Some(match answer {
            Ok(()) => Answer::Linked,
            Err(None) => Answer::AtLimit,
            Err(Some(why)) => Answer::Failed(why),
        });
    }

    pub(super) fn lose(&mut self) {
        self.answer.get_or_insert(Answer::Lost);
    }
}
