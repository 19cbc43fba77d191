//! Roughly what an item takes on the wire.

use postrider_model::{Attempt, Job, Message, Outcome, Record};

/// Ids, numbers and tags of a job.
const JOB: usize = 64;
/// Ids, numbers and tags of a message.
const MESSAGE: usize = 64;
/// A new delivery of an accepted message.
const DELIVERY: usize = 44;
/// A claim of an accepted message.
const CLAIM: usize = 100;
/// Ids, numbers and tags of an outcome.
const OUTCOME: usize = 112;
/// Ids, numbers and tags of an attempt.
const ATTEMPT: usize = 48;

/// How many bytes a thing takes on the wire, to within a few dozen.
pub trait SizeHint {
    /// Bytes. For a job: without its message, which a frame holds once however many jobs share it.
    fn size_hint(&self) -> usize;
}

impl SizeHint for Job {
    fn size_hint(&self) -> usize {
        JOB
    }
}

impl SizeHint for Message {
    fn size_hint(&self) -> usize {
        MESSAGE
            + self.payload.len()
            + self.event_type.len()
            + self.content_type.len()
            + self.event_id.as_ref().map_or(0, String::len)
            + self.traceparent.as_ref().map_or(0, String::len)
            + self
                .channels
                .iter()
                .map(|channel| channel.len() + 2)
                .sum::<usize>()
    }
}

impl SizeHint for Record {
    fn size_hint(&self) -> usize {
        match self {
            Self::Accepted(accepted) => {
                accepted.message.size_hint()
                    + DELIVERY * accepted.deliveries.len()
                    + CLAIM * accepted.claims.len()
            }
            Self::Outcome(outcome) => outcome.size_hint(),
        }
    }
}

impl SizeHint for Outcome {
    fn size_hint(&self) -> usize {
        OUTCOME + self.attempt.as_ref().map_or(0, SizeHint::size_hint)
    }
}

impl SizeHint for Attempt {
    fn size_hint(&self) -> usize {
        ATTEMPT + self.response.len() + self.url.len()
    }
}
