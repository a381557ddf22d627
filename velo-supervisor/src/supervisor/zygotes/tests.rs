//! The zygote's keeper with a process that says nothing, and a clock that the test turns.

use super::*;
use crate::supervisor::zygote_orders::IMPORT_BOUND;
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use tokio::task::LocalSet;

const LONG: Duration = Duration::from_secs(60);

/// A standing zygote that says nothing by itself, and the numbers of those that have ended.
fn silent() -> (ZygoteManager, UnboundedReceiver<u64>) {
    let (ended, news) = unbounded_channel();
    let report = move |number, event| {
        if matches!(event, ZygoteEvent::Ended) {
            let _ = ended.send(number);
        }
    };
    let owner = os::pidfd_open(nix::unistd::getpid().as_raw()).expect("a pidfd");
    let command = ["sleep", "1000"].map(OsString::from).to_vec();
    let manager = ZygoteManager::new(command, vec![], owner, LONG, true, Rc::new(report));
    (manager, news)
}

/// Starts another zygote as soon as one may start. The time by then.
fn start_next(zygotes: &mut ZygoteManager, now: Instant) -> Instant {
    let now = zygotes.restarts.not_before().map_or(now, |at| at.max(now));
    zygotes.advance(now, 0).expect("a zygote");
    now
}

/// Hears of the end of a zygote, which is the last one after `PATIENCE` attempts. Why, if it is.
async fn end_of(
    attempt: u32,
    zygotes: &mut ZygoteManager,
    news: &mut UnboundedReceiver<u64>,
    now: Instant,
) -> Option<String> {
    let number = news.recv().await.expect("its end");
    let verdict = zygotes.ended(now, number);
    assert_eq!(
        verdict.is_err(),
        attempt == PATIENCE,
        "{attempt}: {verdict:?}"
    );
    verdict.err()
}

#[tokio::test]
async fn a_module_that_takes_too_long_is_refused_and_costs_no_restart() {
    let body = async {
        let (mut zygotes, mut news) = silent();
        let mut now = Instant::now();
        let modules = ["quick", "slow", "next"].map(String::from).to_vec();
        zygotes.preload(now, modules, vec![]);
        zygotes.advance(now, 0).expect("a zygote");
        zygotes.ready(now, PROTOCOL_VERSION, 1).expect("its peer");
        now += IMPORT_BOUND / 2;
        zygotes.preloaded(now, 1, "quick", false, false);
        assert_eq!(zygotes.next_deadline(), Some(now + IMPORT_BOUND));
        assert_eq!(zygotes.hung_import(now + IMPORT_BOUND / 2), None);
        now += IMPORT_BOUND;
        assert_eq!(zygotes.hung_import(now).as_deref(), Some("slow"));
        assert_eq!(
            (zygotes.hung_import(now), zygotes.next_deadline()),
            (None, None)
        );
        let number = news.recv().await.expect("its end");
        assert_eq!(zygotes.ended(now, number), Ok(()));
        assert_eq!(zygotes.restarts.streak(), 0, "the next one does without it");
        assert_eq!(zygotes.preload.modules, ["quick", "next"]);
        zygotes.preload(now, vec!["slow".into()], vec![]);
        assert_eq!(zygotes.preload.modules, ["quick", "next"]);
        zygotes.advance(now, 0).expect("another");
        assert!(zygotes.lives(2));
        zygotes.kill();
    };
    LocalSet::new().run_until(body).await;
}

#[tokio::test]
async fn zygotes_that_are_never_ready_are_given_up() {
    let body = async {
        let (mut zygotes, mut news) = silent();
        let mut now = Instant::now();
        for attempt in 1..=PATIENCE {
            start_next(&mut zygotes, now);
            now = zygotes.next_deadline().expect("a limit");
            zygotes.advance(now, 0).expect("that it is killed");
            assert_eq!(zygotes.next_deadline(), None);
            if let Some(why) = end_of(attempt, &mut zygotes, &mut news, now).await {
                assert!(why.contains("was not ready within 60 s (5 times)"), "{why}");
            }
        }
    };
    LocalSet::new().run_until(body).await;
}

#[tokio::test]
async fn so_are_zygotes_that_end_after_a_long_start() {
    let body = async {
        let (mut zygotes, mut news) = silent();
        let mut now = Instant::now();
        zygotes.preload(now, vec!["long".into()], vec![]);
        for attempt in 1..=PATIENCE {
            now = start_next(&mut zygotes, now);
            zygotes.ready(now, PROTOCOL_VERSION, 1).expect("its peer");
            now += IMPORT_BOUND / 2;
            zygotes.preloaded(now, attempt.into(), "long", false, false);
            let process = &zygotes.zygote.as_ref().expect("a zygote").process;
            process.signal(Signal::SIGKILL as i32);
            end_of(attempt, &mut zygotes, &mut news, now).await;
        }
    };
    LocalSet::new().run_until(body).await;
}
