//! What many requests ask for, in one call.
//!
//! While a call is on its way, what comes meanwhile gathers and goes with the next one: one trip for a batch of
//! concurrent requests, nothing added for a lonely one.

use std::collections::VecDeque;

use parking_lot::Mutex;
use tokio::sync::oneshot;

/// Most requests of one call.
const REQUESTS_MAX: usize = 256;

/// Questions that wait for the next call: those that came during one call. What nobody waits for any more is not asked.
pub(crate) struct Gather<Q, A> {
    state: Mutex<State<Q, A>>,
    /// Keys that a question asks for.
    keys: fn(&Q) -> usize,
    /// Most of them in one call, unless one question alone has more.
    keys_max: usize,
}

struct State<Q, A> {
    waiting: VecDeque<(Q, oneshot::Sender<A>)>,
    in_flight: bool,
}

impl<Q, A> Gather<Q, A> {
    pub(crate) fn new(keys: fn(&Q) -> usize, keys_max: usize) -> Self {
        Self {
            state: Mutex::new(State {
                waiting: VecDeque::new(),
                in_flight: false,
            }),
            keys,
            keys_max,
        }
    }

    /// Asks; true when nobody makes calls, so that the caller is to start [`Gather::answer`].
    pub(crate) fn ask(&self, question: Q) -> (oneshot::Receiver<A>, bool) {
        let (sender, receiver) = oneshot::channel();
        let mut state = self.state.lock();
        state.waiting.push_back((question, sender));
        let lead = !std::mem::replace(&mut state.in_flight, true);
        (receiver, lead)
    }

    /// Makes calls until nothing waits. A question without an answer learns that its sender is gone.
    pub(crate) async fn answer<F: Future<Output = Vec<A>>>(&self, call: impl Fn(Vec<Q>) -> F) {
        let _end = Lead(self);
        loop {
            // Behind what is ready to run now, which may have more to add.
            tokio::task::yield_now().await;
            let (questions, askers) = self.take();
            if questions.is_empty() {
                return;
            }
            for (asker, answer) in askers.into_iter().zip(call(questions).await) {
                // The request may be gone.
                let _ = asker.send(answer);
            }
        }
    }

    /// The next batch; an empty one ends the lead.
    fn take(&self) -> (Vec<Q>, Vec<oneshot::Sender<A>>) {
        let mut state = self.state.lock();
        let mut taken = (Vec::new(), Vec::new());
        let mut keys = 0;
        while let Some((question, asker)) = state.waiting.front() {
            if asker.is_closed() {
                state.waiting.pop_front();
                continue;
            }
            keys += (self.keys)(question);
            if !taken.0.is_empty() && (taken.0.len() >= REQUESTS_MAX || keys > self.keys_max) {
                break;
            }
            let Some((question, asker)) = state.waiting.pop_front() else {
                break;
            };
            taken.0.push(question);
            taken.1.push(asker);
        }
        state.in_flight = !taken.0.is_empty();
        taken
    }
}

/// The one that makes the calls. When it panics the next request takes over, and those that wait get no answer.
struct Lead<'a, Q, A>(&'a Gather<Q, A>);

impl<Q, A> Drop for Lead<'_, Q, A> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let mut state = self.0.state.lock();
            state.in_flight = false;
            state.waiting.clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    fn gather(keys_max: usize) -> Arc<Gather<usize, usize>> {
        Arc::new(Gather::new(|keys| *keys, keys_max))
    }

    #[tokio::test]
    async fn what_comes_during_a_call_goes_with_the_next_one() {
        let gather = gather(100);
        let (first, lead) = gather.ask(1);
        assert!(lead);
        let calls = Mutex::new(Vec::new());
        let late = Mutex::new(Vec::new());
        gather
            .answer(|batch| {
                if calls.lock().is_empty() {
                    for keys in [2, 3] {
                        let (answer, lead) = gather.ask(keys);
                        assert!(!lead);
                        late.lock().push(answer);
                    }
                }
                calls.lock().push(batch.clone());
                async move { batch.iter().map(|keys| keys * 10).collect() }
            })
            .await;
        assert_eq!(*calls.lock(), [vec![1], vec![2, 3]]);
        assert_eq!(first.await, Ok(10));
        let late = std::mem::take(&mut *late.lock());
        for (answer, expected) in late.into_iter().zip([20, 30]) {
            assert_eq!(answer.await, Ok(expected));
        }
        assert!(gather.ask(1).1, "nobody makes calls any more");
    }

    #[tokio::test]
    async fn what_nobody_waits_for_is_not_asked() {
        let gather = gather(5);
        let (kept, _) = gather.ask(1);
        drop(gather.ask(2));
        gather.answer(|batch| async { batch }).await;
        assert_eq!(kept.await, Ok(1));
        drop(gather.ask(3));
        gather
            .answer(|batch| async move { panic!("asked for {batch:?}") })
            .await;
    }

    #[tokio::test]
    async fn a_call_is_bounded_and_who_gets_no_answer_learns_it() {
        let gather = gather(5);
        let answers: Vec<_> = [3, 2, 1, 9, 1].map(|keys| gather.ask(keys).0).into();
        let calls = Mutex::new(Vec::new());
        gather
            .answer(|batch| {
                calls.lock().push(batch);
                async { vec![7] }
            })
            .await;
        assert_eq!(*calls.lock(), [vec![3, 2], vec![1], vec![9], vec![1]]);
        let mut answered = Vec::new();
        for answer in answers {
            answered.push(answer.await.is_ok());
        }
        assert_eq!(answered, [true, false, true, true, true]);
    }

    #[tokio::test]
    async fn after_a_panic_the_next_request_makes_the_calls() {
        let gather = gather(5);
        let lost = [gather.ask(4).0, gather.ask(4).0];
        let lead = Arc::clone(&gather);
        let panics = tokio::spawn(async move {
            lead.answer(|_| async { panic!("as a test wants it") }).await;
        });
        panics.await.expect_err("it panicked");
        for lost in lost {
            lost.await.expect_err("no answer, asked for or not");
        }
        let (answer, lead) = gather.ask(1);
        assert!(lead);
        gather.answer(|batch| async { batch }).await;
        assert_eq!(answer.await, Ok(1));
    }
}
