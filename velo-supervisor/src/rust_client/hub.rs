//! What the streams of a connection share: the supervisor, the links, and how to wait.
//!
//! Any number of threads may wait at a time. One of them, the leader, sleeps on the descriptors of
//! all; the others sleep until it has something to tell, and one of them takes over when it goes.

use std::collections::BTreeSet;
use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};

use super::error::StreamError;
use super::link::{ClientLink, Death, RingPair, Watched};
use super::link_request::Request;
use super::news::News;
use super::options::StreamOptions;
use super::values::system;
use crate::client::{Client, ClientEvent};
use crate::error::SupervisorError;
use crate::os::exit::Exit;
use crate::wire::protocol::{Ran, RequestId, Welcome};

/// What an event of the supervisor's socket is called; links have even and odd numbers of their own.
const SUPERVISOR: u64 = 0;

/// Time between two check-ups: looks at what a worker that writes over its link could hide.
pub(super) const CHECK_UP: Duration = Duration::from_millis(500);

/// One connection, shared by its streams.
#[derive(Debug)]
pub(super) struct Hub {
    pub(super) path: PathBuf,
    /// The supervisor, and the doorbells of all links.
    epoll: Epoll,
    news: News,
    state: Mutex<State>,
    changed: Condvar,
    /// How many links there are: about as many workers may be busy.
    links: AtomicUsize,
}

#[derive(Debug, Default)]
pub(super) struct State {
    /// None when the supervisor is gone.
    pub(super) client: Option<Client>,
    /// The supervisor's own description, once it has come.
    pub(super) welcome: Option<Welcome>,
    /// Why it does not serve us, if it does not.
    pub(super) refused: Option<SupervisorError>,
    pub(super) requests: Vec<Request>,
    pub(super) links: Vec<ClientLink>,
    /// The number of messages of the supervisor.
    pub(super) changes: u64,
    pub(super) next_key: u64,
    /// Streams that got news while their owners did not wait.
    news: BTreeSet<Name>,
    /// When the links were last checked.
    checked: Option<Instant>,
    /// A thread sleeps on the descriptors.
    led: bool,
}

/// A stream: its link and its slot.
pub(super) type Name = (u64, u32);

pub(super) type Guard<'a> = MutexGuard<'a, State>;

impl Hub {
    pub(super) fn new(path: &Path) -> Result<Arc<Self>, StreamError> {
        let path = std::path::absolute(path).map_err(system)?;
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).map_err(system)?;
        Ok(Arc::new(Self {
            path,
            news: News::beside(&epoll).map_err(system)?,
            epoll,
            state: Mutex::default(),
            changed: Condvar::new(),
            links: AtomicUsize::new(0),
        }))
    }

    pub(super) fn lock(&self) -> Guard<'_> {
        // Nothing that is called under the lock leaves the state half-changed.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Readable when a call that has timed out may succeed.
    pub(super) fn as_fd(&self) -> BorrowedFd<'_> {
        self.news.as_fd()
    }

    /// How many links there are.
    pub(super) fn link_count(&self) -> usize {
        self.links.load(Relaxed)
    }

    /// Reads the messages of workers, and wakes the other threads to look too.
    pub(super) fn look(&self, state: &mut State) {
        let mut told = false;
        let mut broken = Vec::new();
        for link in &mut state.links {
            if !link.end.any_ready() {
                continue;
            }
            told = true;
            let key = link.key;
            let news = &mut state.news;
            let tell = |slot| {
                news.insert((key, slot));
            };
            if let Err(why) = link.look(tell) {
                broken.push((key, why));
            }
        }
        for (key, why) in broken {
            self.give_up(state, key, &why);
        }
        if told {
            self.changed.notify_all();
        }
    }

    /// Looks at what a worker that writes over its link could make this side miss.
    fn check_up(&self, state: &mut State) {
        let now = Instant::now();
        if state.checked.is_some_and(|at| now - at < CHECK_UP) {
            return;
        }
        state.checked = Some(now);
        let found: Vec<_> = state
            .links
            .iter()
            .filter_map(|link| Some((link.key, link.check_up().err()?)))
            .collect();
        for (key, why) in found {
            self.give_up(state, key, &why);
        }
    }

    /// A link makes no sense: its streams fail, and its worker is replaced.
    pub(super) fn give_up(&self, state: &mut State, key: u64, why: &str) {
        if let Some(mut link) = self.remove(state, |link| link.key == key) {
            link.give_up(why);
            state.tell_all_of(&link);
            if let (Some(client), Some(id)) = (&mut state.client, link.id) {
                let _ = client.release_broken(id);
            }
            self.changed.notify_all();
        }
    }

    /// Waits until `ready` gives a value. `who` is the stream that waits.
    ///
    /// After [`StreamError::TimedOut`] this side stays armed: the descriptor becomes readable when
    /// it is worth another try.
    pub(super) fn wait<'a, T>(
        &'a self,
        mut state: Guard<'a>,
        deadline: Option<Instant>,
        who: Option<Name>,
        mut ready: impl FnMut(&mut State) -> Result<Option<T>, StreamError>,
    ) -> Result<(Guard<'a>, T), StreamError> {
        let mut looked = false;
        loop {
            state.links.iter().for_each(|link| link.end.arm());
            self.look(&mut state);
            if let Some(who) = who {
                state.news.remove(&who);
            }
            self.news.show(!state.news.is_empty());
            if let Some(found) = ready(&mut state)? {
                return Ok((state, found));
            }
            let left = deadline.map(|at| at.saturating_duration_since(Instant::now()));
            let over = left.is_some_and(|left| left.is_zero());
            // The descriptors are looked at once in any case, unless another thread does.
            if over && (looked || state.led) {
                return Err(StreamError::TimedOut);
            }
            looked = over;
            if state.led {
                state = self.follow(state, left);
                continue;
            }
            state.led = true;
            drop(state);
            let mut events = [EpollEvent::empty(); 16];
            let nap = left.map_or(CHECK_UP, |left| left.min(CHECK_UP));
            let woken = self.epoll.wait(&mut events, timeout(nap));
            state = self.lock();
            state.led = false;
            self.changed.notify_all();
            match woken {
                Ok(count) => {
                    for event in events.iter().take(count) {
                        self.handle(&mut state, event.data());
                    }
                }
                Err(Errno::EINTR) => {}
                Err(errno) => return Err(system(errno)),
            }
            self.check_up(&mut state);
        }
    }

    /// Reads the messages that came while no thread waited.
    pub(super) fn catch_up(&self, state: &mut State) -> Result<(), StreamError> {
        if state.led {
            return Ok(()); // the thread that sleeps there hears it
        }
        let mut events = [EpollEvent::empty(); 16];
        match self.epoll.wait(&mut events, EpollTimeout::ZERO) {
            Ok(count) => {
                for event in events.iter().take(count) {
                    self.handle(state, event.data());
                }
            }
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(system(errno)),
        }
        // What was silenced is looked at, and rings again.
        state.links.iter().for_each(|link| link.end.arm());
        self.look(state);
        self.news.show(!state.news.is_empty());
        Ok(())
    }

    /// Sleeps until the leader has news, or leaves.
    fn follow<'a>(&self, state: Guard<'a>, left: Option<Duration>) -> Guard<'a> {
        match left {
            None => self
                .changed
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner),
            Some(left) => {
                let woken = self.changed.wait_timeout(state, left);
                woken.unwrap_or_else(PoisonError::into_inner).0
            }
        }
    }

    fn handle(&self, state: &mut State, token: u64) {
        if token == SUPERVISOR {
            return self.hear(state);
        }
        let key = token / 2;
        let Some(link) = state.links.iter().find(|link| link.key == key) else {
            return;
        };
        if token == bell_of(key) {
            link.end.doorbell().drain();
            return;
        }
        // Without the supervisor nothing is known of other links, nor from the system.
        let ran = match link.end.running() {
            Some(_) => Ran::Here,
            None => Ran::Nothing,
        };
        let death = Death {
            exit: Exit::Unknown,
            ran,
            why: None,
            stack: String::new(),
        };
        self.reap(state, |link| link.key == key, &death);
    }

    /// What the supervisor says.
    fn hear(&self, state: &mut State) {
        let Some(client) = &mut state.client else {
            return;
        };
        let events = client.poll();
        state.changes += 1;
        match events {
            Ok(events) => events
                .into_iter()
                .for_each(|event| self.on_event(state, event)),
            Err(error) => {
                state.refused = Some(error);
                self.lose(state);
            }
        }
    }

    fn on_event(&self, state: &mut State, event: ClientEvent) {
        match event {
            ClientEvent::Hello(welcome) => state.welcome = Some(welcome),
            ClientEvent::Link {
                request,
                link,
                worker,
                end,
                process,
            } => {
                state.next_key += 1;
                let made = ClientLink::new(state.next_key, link, worker, end, process)
                    .map_err(|why| format!("cannot use a link: {why}"))
                    .and_then(|made| self.adopt(state, made));
                if made.is_err()
                    && let Some(client) = &mut state.client
                {
                    let _ = client.release(link);
                }
                state.answer(request, made.map_err(Some));
            }
            ClientEvent::Refused { request, reason } => {
                let why = match reason {
                    crate::Refusal::AtLimit => None,
                    crate::Refusal::Failed(why) => Some(why),
                };
                state.answer(request, Err(why));
            }
            ClientEvent::LinkRetired { link } => {
                if let Some(mut link) = self.remove(state, |known| known.id == Some(link)) {
                    // Only an idle link is taken back. This fails nothing, unless its count was wrong.
                    link.give_up("the worker wrote over the count of its streams");
                    state.tell_all_of(&link);
                }
            }
            ClientEvent::LinkLeaving { link } => {
                if let Some(link) = state.links.iter_mut().find(|l| l.id == Some(link)) {
                    link.leaving = true;
                }
            }
            ClientEvent::WorkerDied {
                link,
                exit,
                ran,
                why,
                stack,
                ..
            } => {
                let death = Death {
                    exit,
                    ran,
                    why,
                    stack,
                };
                self.reap(state, |known: &ClientLink| known.id == Some(link), &death);
            }
            ClientEvent::Lost => self.lose(state),
            // It asks for no keys.
            ClientEvent::KeyGranted { .. }
            | ClientEvent::KeyRefused { .. }
            | ClientEvent::KeyGone { .. }
            | ClientEvent::NotPreloaded { .. }
            | ClientEvent::Status(_)
            | ClientEvent::Looked(_)
            | ClientEvent::Log(_)
            | ClientEvent::Done
            | ClientEvent::Unable(_) => {}
        }
    }

    fn adopt(&self, state: &mut State, link: ClientLink) -> Result<(), String> {
        let bell = EpollEvent::new(EpollFlags::EPOLLIN, bell_of(link.key));
        self.epoll
            .add(link.end.doorbell(), bell)
            .map_err(|errno| format!("cannot wait for a worker: {errno}"))?;
        state.links.push(link);
        self.links.store(state.links.len(), Relaxed);
        Ok(())
    }

    fn remove(&self, state: &mut State, which: impl Fn(&ClientLink) -> bool) -> Option<ClientLink> {
        let link = state.links.remove(state.links.iter().position(which)?);
        self.links.store(state.links.len(), Relaxed);
        // The worker has copies of these, so that closing them is not enough.
        let _ = self.epoll.delete(link.end.doorbell());
        if let (None, Some(process)) = (link.id, &link.process) {
            let _ = self.epoll.delete(process);
        }
        Some(link)
    }

    fn reap(&self, state: &mut State, which: impl Fn(&ClientLink) -> bool, death: &Death) {
        if let Some(mut link) = self.remove(state, which) {
            let _ = link.look(|_| ()); // what it has said counts
            link.fail(death);
            state.tell_all_of(&link);
        }
    }

    /// The supervisor is gone: its workers serve the links that there are, until their streams have ended.
    pub(super) fn lose(&self, state: &mut State) {
        if let Some(client) = state.client.take() {
            let _ = self.epoll.delete(client.as_fd());
        }
        state.welcome = None;
        state.requests.iter_mut().for_each(Request::lose);
        for link in state.links.iter_mut().filter(|link| link.id.is_some()) {
            link.id = None; // the next supervisor's numbers are its own
            if let Some(process) = &link.process {
                let gone = EpollEvent::new(EpollFlags::EPOLLIN, bell_of(link.key) + 1);
                let _ = self.epoll.add(process, gone);
            }
        }
    }

    /// Connects to the supervisor.
    pub(super) fn connect(&self, state: &mut State) -> Result<(), StreamError> {
        let client = Client::connect(&self.path)?;
        self.epoll
            .add(
                client.as_fd(),
                EpollEvent::new(EpollFlags::EPOLLIN, SUPERVISOR),
            )
            .map_err(system)?;
        // Workers of the supervisor before this one.
        state.links.iter_mut().for_each(|link| link.leaving = true);
        (state.welcome, state.refused) = (None, None);
        state.client = Some(client);
        Ok(())
    }

    /// Gives back what a stream had, whose end was seen.
    pub(super) fn close(&self, (key, slot): Name) {
        let mut state = self.lock();
        state.news.remove(&(key, slot));
        if let Some(link) = state.link(key) {
            link.close(slot);
        }
    }

    /// The owner has dropped the stream.
    pub(super) fn abandon(&self, (key, slot): Name, rings: RingPair) {
        let mut state = self.lock();
        state.news.remove(&(key, slot));
        if let Some(link) = state.link(key) {
            link.abandon(slot, rings);
        }
    }
}

impl State {
    pub(super) fn link(&mut self, key: u64) -> Option<&mut ClientLink> {
        self.links.iter_mut().find(|link| link.key == key)
    }

    fn tell_all_of(&mut self, link: &ClientLink) {
        let key = link.key;
        self.news.extend(link.slots().map(|slot| (key, slot)));
    }

    fn answer(&mut self, id: RequestId, answer: Result<(), Option<String>>) {
        if let Some(request) = self.requests.iter_mut().find(|request| request.awaits(id)) {
            request.answer(answer);
        }
    }

    /// Has the supervisor look at a worker whose streams have limits.
    pub(super) fn watch(&mut self, key: u64, options: &StreamOptions) {
        let wanted = Watched::of(options);
        if wanted == Watched::default() {
            return;
        }
        let Some(link) = self.links.iter_mut().find(|link| link.key == key) else {
            return;
        };
        let limits = link.limits.and(wanted);
        let unwatched = link.end.begin_limit();
        if !unwatched && limits == link.limits {
            return;
        }
        link.limits = limits;
        // Without a supervisor nothing can watch.
        if let (Some(client), Some(id)) = (&mut self.client, link.id) {
            let _ = client.watch(id, limits.stall, limits.memory);
        }
    }
}

/// What an event of a link's doorbell is called; one more is the worker's death.
fn bell_of(key: u64) -> u64 {
    2 * key
}

fn timeout(left: Duration) -> EpollTimeout {
    // Rounded up, so that a short wait does not turn into a busy one.
    i32::try_from(left.as_micros().div_ceil(1000))
        .ok()
        .and_then(|ms| EpollTimeout::try_from(ms).ok())
        .unwrap_or(EpollTimeout::MAX)
}
