//! Workers that stand still.

use velo_shm::{Allowance, Setting};

use super::super::watch::{WRITING_BOUND, WRITING_PAUSE};
use super::*;

const LIMIT: Duration = Duration::from_millis(400);

fn asks(stall: Option<Duration>) -> Watch {
    Watch {
        stall,
        memory: None,
    }
}

/// A rig with one link whose worker is watched.
fn watched() -> (Rig, LinkId, WorkerId) {
    let mut rig = Rig::new(|_| {});
    let (link, worker) = rig.link(1, 2);
    rig.fake.residents.insert(link, 1);
    assert!(rig.pool.watch(rig.now, 1, link, asks(Some(LIMIT))));
    assert_eq!(rig.reconcile(), []);
    (rig, link, worker)
}

fn runs(step: u64, time: Option<Duration>, setting: Setting) -> Running {
    Running {
        step,
        slot: 1,
        stream: 0,
        event: 1,
        allowance: time.map(|time| Allowance { time, setting }),
    }
}

fn set_running(rig: &mut Rig, link: LinkId, running: Running) {
    rig.fake.running.insert(link, running);
    let progress = rig.fake.progress.entry(link).or_default();
    progress.step = running.step;
}

/// What the worker's clients are told when it has been killed.
fn reap(rig: &mut Rig, worker: WorkerId) -> Option<Killed> {
    rig.pool.exited(rig.now, worker, Exit::Signal(9));
    let told = rig.reconcile();
    let why = told.iter().find_map(|action| match action {
        Action::Died { why, .. } => Some(*why),
        _ => None,
    });
    why.expect("a death")
}

#[test]
fn a_step_that_takes_too_long_is_written_down_and_then_killed() {
    let (mut rig, link, worker) = watched();
    set_running(&mut rig, link, runs(1, Some(LIMIT), Setting::Stall));
    assert_eq!(rig.pass(LIMIT / 2), []);
    let done = rig.pass(LIMIT);
    assert_eq!(done, [Action::AskForStacks { worker }]);
    // It writes, and goes on writing.
    for written in 1..4 {
        rig.fake.written.insert(worker, written);
        assert_eq!(rig.pass(WRITING_PAUSE), []);
    }
    let step = Step::Kill;
    assert_eq!(rig.pass(2 * WRITING_PAUSE), [Action::Stop { worker, step }]);
    let ms = LIMIT.as_millis() as u64;
    assert_eq!(
        reap(&mut rig, worker),
        Some(Killed::Step { ms, event: false })
    );
    assert_eq!(rig.pool.restarts.streak(), 0, "the worker is not to blame");
}

#[test]
fn one_that_writes_nothing_is_killed_all_the_same() {
    let (mut rig, link, worker) = watched();
    set_running(&mut rig, link, runs(1, Some(MS), Setting::Event));
    assert!(rig.pass(LIMIT).contains(&Action::AskForStacks { worker }));
    let step = Step::Kill;
    assert_eq!(rig.pass(WRITING_BOUND), [Action::Stop { worker, step }]);
    let why = Killed::Step { ms: 1, event: true };
    assert_eq!(reap(&mut rig, worker), Some(why));
}

/// Whatever it runs once it has moved on, it is not what was too long.
#[test]
fn one_that_moves_on_while_it_writes_is_let_go() {
    let (mut rig, link, worker) = watched();
    set_running(&mut rig, link, runs(1, Some(LIMIT), Setting::Stall));
    assert!(
        rig.pass(2 * LIMIT)
            .contains(&Action::AskForStacks { worker })
    );
    rig.fake.written.insert(worker, 9);
    set_running(&mut rig, link, runs(3, Some(LIMIT), Setting::Stall));
    assert_eq!(rig.pass(LIMIT / 2), []);
    assert_eq!(rig.link(2, 1).1, worker, "it serves again");
    let again = rig.pass(2 * LIMIT);
    assert!(
        again.contains(&Action::AskForStacks { worker }),
        "{again:?}"
    );
}

#[test]
fn steps_that_end_in_time_are_let_be() {
    let (mut rig, link, _) = watched();
    for step in 0..50 {
        set_running(
            &mut rig,
            link,
            runs(2 * step + 1, Some(LIMIT), Setting::Stall),
        );
        assert_eq!(rig.pass(LIMIT - LIMIT / 4), []);
    }
}

#[test]
fn a_step_without_a_limit_may_take_as_long_as_it_likes() {
    let (mut rig, link, _) = watched();
    set_running(&mut rig, link, runs(1, None, Setting::Stall));
    rig.fake.waiting.insert(link);
    assert_eq!(rig.pass(100 * LIMIT), []);
}

#[test]
fn a_worker_that_ignores_what_waits_for_it_is_killed() {
    let (mut rig, link, worker) = watched();
    assert_eq!(rig.pass(10 * LIMIT), [], "nothing waits");
    rig.fake.waiting.insert(link);
    assert_eq!(rig.pass(LIMIT / 2), [], "it has just come");
    assert_eq!(rig.pass(LIMIT), [Action::AskForStacks { worker }]);
    rig.pass(WRITING_BOUND);
    let why = reap(&mut rig, worker);
    assert!(
        matches!(why, Some(Killed::Still { ms: 400..800 })),
        "{why:?}"
    );
}

#[test]
fn one_that_looks_at_what_comes_is_let_be() {
    let (mut rig, link, _) = watched();
    rig.fake.waiting.insert(link);
    for looks in 0..50 {
        rig.fake.progress.entry(link).or_default().looks = looks;
        assert_eq!(rig.pass(LIMIT - LIMIT / 4), []);
    }
}

#[test]
fn work_for_another_client_is_progress() {
    let (mut rig, link, worker) = watched();
    let (other, same) = rig.link(2, 1);
    assert_eq!(same, worker);
    rig.fake.residents.insert(other, 1);
    rig.fake.waiting.insert(link);
    for step in 0..50 {
        set_running(&mut rig, other, runs(2 * step + 1, None, Setting::Stall));
        assert_eq!(rig.pass(LIMIT - LIMIT / 4), []);
    }
}

#[test]
fn looks_end_with_the_streams_that_ask_for_them() {
    let (mut rig, link, worker) = watched();
    rig.pass(LIMIT);
    assert!(rig.pool.watch_deadline().is_some());
    rig.fake.unlimited.insert(link);
    rig.pass(LIMIT);
    assert_eq!(rig.pool.watch_deadline(), None, "an idle system sleeps");
    set_running(&mut rig, link, runs(1, Some(MS), Setting::Stall));
    assert_eq!(rig.pass(LIMIT), []);
    rig.fake.unlimited.clear();
    assert!(rig.pool.watch(rig.now, 1, link, asks(None)));
    assert_eq!(rig.reconcile(), []);
    rig.pool.watch(rig.now, 1, link, asks(Some(LIMIT)));
    assert!(rig.pass(LIMIT).contains(&Action::AskForStacks { worker }));
}

#[test]
fn the_strictest_limit_decides_how_often_looks_are_taken() {
    let (mut rig, link, _) = watched();
    rig.pool.watch(rig.now, 1, link, asks(Some(1000 * LIMIT)));
    rig.reconcile();
    let pause = rig.pool.watch_deadline().map(|at| at - rig.now);
    assert_eq!(pause, Some(LIMIT / 4));
    rig.pool.watch(rig.now, 1, link, asks(Some(MS)));
    rig.reconcile();
    let pause = rig.pool.watch_deadline().map(|at| at - rig.now);
    assert_eq!(pause, Some(5 * MS), "not more often");
}

#[test]
fn a_link_of_another_client_is_not_watched_for_one() {
    let (mut rig, link, _) = watched();
    assert!(!rig.pool.watch(rig.now, 2, link, asks(Some(MS))));
    assert!(!rig.pool.watch(rig.now, 1, LinkId(99), asks(Some(MS))));
}
