//! Finding a link for a stream, by the rule of `client_side/placement.rs`, and asking for new workers.

use std::time::{Duration, Instant};

use super::error::StreamError;
use super::hub::{Guard, Hub, State};
use super::link::{ClientLink, OpenedStream};
use super::link_request::{Answer, Request};
use super::options::StreamOptions;
use super::quota::Counted;
use crate::client_side::placement::{Candidate, Choice, choose, least_loaded, usable};
use crate::error::SupervisorError;
use crate::wire::protocol::Welcome;

/// How long a supervisor may take to greet.
const HELLO_BOUND: Duration = Duration::from_secs(10);

impl Hub {
    /// Waits until the supervisor has said who it is.
    pub(super) fn greet<'a>(
        &'a self,
        mut state: Guard<'a>,
        deadline: Option<Instant>,
    ) -> Result<(Guard<'a>, Welcome), StreamError> {
        if state.client.is_none() {
            self.connect(&mut state)?;
        }
        let bound = Instant::now() + HELLO_BOUND;
        let bound = deadline.map_or(bound, |deadline| deadline.min(bound));
        let (state, welcome) = self.wait(state, Some(bound), None, |state| {
            match (&state.welcome, &state.client) {
                (Some(welcome), _) => Ok(Some(welcome.clone())),
                (None, Some(_)) => Ok(None),
                (None, None) => Err(state.refused.take().unwrap_or(SupervisorError::Lost).into()),
            }
        })?;
        let ours = velo_shm::VERSION;
        if welcome.velo != ours {
            return Err(StreamError::Pool(format!(
                "the supervisor at `{}` runs velo {}, this program velo {ours}; run the same version \
                 on both sides",
                self.path.display(),
                welcome.velo
            )));
        }
        Ok((state, welcome))
    }

    /// Opens a stream.
    pub(super) fn open(
        &self,
        definition: &[u8],
        name: &str,
        options: &StreamOptions,
    ) -> Result<OpenedStream, StreamError> {
        let deadline = Instant::now().checked_add(options.open_timeout);
        let mut state = self.lock();
        self.catch_up(&mut state)?;
        loop {
            let (now, key) = self.choose_link(state, options, deadline)?;
            state = now;
            let most = state.welcome.as_ref().map_or(0, |w| w.max_streams);
            let counted = Counted::one(&self.path, most).ok_or_else(|| {
                StreamError::Pool(format!(
                    "this process has {most} open streams, which is the quota of one client of the \
                     supervisor at `{}` (`--client-streams {most}`)",
                    self.path.display()
                ))
            })?;
            let Some(link) = state.link(key) else {
                continue;
            };
            match link.open(definition, name, options, counted) {
                Ok(Some(opened)) => {
                    state.watch(key, options);
                    return Ok(opened);
                }
                Ok(None) => link.leaving = true, // the supervisor will say why
                // The stream begins on another one.
                Err(StreamError::Corrupted(why)) => self.give_up(&mut state, key, &why),
                Err(error) => return Err(error),
            }
        }
    }

    /// Chooses a link, and asks for one if there should be more.
    fn choose_link<'a>(
        &'a self,
        mut state: Guard<'a>,
        options: &StreamOptions,
        deadline: Option<Instant>,
    ) -> Result<(Guard<'a>, u64), StreamError> {
        let wanted = options
            .workers
            .map_or_else(velo_shm::cores, |workers| workers as usize);
        loop {
            if state.client.is_none()
                && let Err(error) = self.connect(&mut state)
            {
                // What needs no supervisor: a worker that is linked.
                let least = state.least_loaded(wanted);
                return least.map(|key| (state, key)).ok_or(error);
            }
            let (now, welcome) = self.greet(state, deadline)?;
            state = now;
            let workers = match welcome.max_workers {
                0 => wanted,
                most => wanted.min(most as usize),
            }
            .max(1);
            let candidates = state.candidates();
            let had_links = !candidates.is_empty();
            if let Choice::Use(at) = choose(&candidates, workers) {
                let key = state.links[at].key;
                return Ok((state, key));
            }
            if usable(&candidates, workers).len() + state.requests.len() < workers {
                let (now, answer) = self.ask(state, workers, deadline)?;
                state = now;
                match answer {
                    Answer::Linked | Answer::Lost => continue,
                    Answer::Failed(why) => {
                        return Err(StreamError::Pool(format!("no worker process: {why}")));
                    }
                    Answer::AtLimit => {}
                }
            }
            if let Some(key) = state.least_loaded(workers) {
                return Ok((state, key));
            }
            if had_links && state.links.is_empty() {
                continue; // the last one went meanwhile
            }
            if state.requests.is_empty() && state.links.is_empty() {
                return Err(StreamError::Pool(
                    "all workers are taken, and no more may be started".into(),
                ));
            }
            // A worker is on its way, or one that leaves makes room.
            let changes = state.changes;
            let change = |state: &mut State| Ok((state.changes != changes).then_some(()));
            (state, ()) = self.wait(state, deadline, None, change)?;
        }
    }

    /// Asks for a link, and waits for the answer.
    fn ask<'a>(
        &'a self,
        mut state: Guard<'a>,
        workers: usize,
        deadline: Option<Instant>,
    ) -> Result<(Guard<'a>, Answer), StreamError> {
        let Some(client) = &mut state.client else {
            return Ok((state, Answer::Lost));
        };
        let workers = u32::try_from(workers).unwrap_or(u32::MAX);
        let id = match client.acquire(workers) {
            Ok(id) => id,
            Err(SupervisorError::Lost) => {
                self.lose(&mut state);
                return Ok((state, Answer::Lost));
            }
            Err(error) => return Err(error.into()),
        };
        state.next_key += 1;
        let number = state.next_key;
        state.requests.push(Request::new(number, id));
        let mut answered = |state: &mut State| {
            let requests = &mut state.requests;
            let at = requests.iter().position(|request| request.number == number);
            let Some(at) = at.filter(|&at| requests[at].is_answered()) else {
                return Ok(None);
            };
            Ok(requests.swap_remove(at).into_answer())
        };
        match self.wait(state, deadline, None, &mut answered) {
            Ok((mut state, answer)) => {
                state.changes += 1; // for those who wait for this request too
                Ok((state, answer))
            }
            Err(error) => {
                let mut state = self.lock();
                state.requests.retain(|request| request.number != number);
                Err(error)
            }
        }
    }
}

impl State {
    /// The links, as the rule of placement sees them.
    fn candidates(&self) -> Vec<Candidate> {
        let candidate = |link: &ClientLink| Candidate {
            worker: link.worker.id,
            streams: link.streams(),
            slow: false, // functions tell only clients that log
            leaving: link.leaving,
            avoided: false,
        };
        self.links.iter().map(candidate).collect()
    }

    /// The link with the fewest streams among those that may be given one.
    fn least_loaded(&self, workers: usize) -> Option<u64> {
        least_loaded(&self.candidates(), workers).map(|at| self.links[at].key)
    }
}
