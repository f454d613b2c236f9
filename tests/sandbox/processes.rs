//! What becomes of processes: those of a job, and those that run jobs, when they die, hang or are not wanted any more.

use super::{LIMITS, Process, below, job, processes, python, start, wait_until, worker_of};
use onestep::error::Kind;
use onestep::sandbox::{Job, Limits, Outcome, Pool};
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Lower process ids first: those that were made earlier, until the numbers start again.
fn children(parent: u32) -> Vec<u32> {
    let own = |process: Process| (process.parent == parent).then_some(process.pid);
    let mut found: Vec<u32> = processes().into_iter().filter_map(own).collect();
    found.sort_unstable();
    found
}

/// Waits until a pool of `workers` has nothing to do: each has its fork-server and the loader, and where scripts have namespaces those
/// that have run a job have the next one's keeper and process.
fn wait_idle(pool: &Pool, workers: usize, have_run: usize) -> Vec<Process> {
    let waiting = if pool.protection().tier >= 2 { 2 * have_run } else { 0 };
    let mut found = vec![];
    wait_until("the pool is idle", || {
        found = below(pool.helper_pid());
        found.len() == 3 * workers + waiting
    });
    found
}

fn signal(pid: u32, name: &str) {
    assert!(Command::new("kill").args([format!("-{name}"), pid.to_string()]).status().unwrap().success());
}

#[test]
fn a_daemon_that_holds_stdout_blocks_nothing_and_is_gone() {
    let pool = start(1);
    wait_idle(&pool, 1, 1); // it was tried out
    let script = "import os, time\nif os.fork() == 0:\n  os.setsid()\n  if os.fork() == 0: time.sleep(1000)\n  os._exit(0)\nos.wait()\nprint('done')";
    let (_folder, job) = job(script, LIMITS);
    let verdict = pool.run(job).unwrap();
    assert_eq!((verdict.outcome, verdict.stdout.as_str()), (Outcome::Exited(0), "done\n"));
    wait_idle(&pool, 1, 1);
}

/// A script's first line: its process is seen by this name.
const BEGUN: &str = "import ctypes, time; ctypes.CDLL(None).prctl(15, b'begun', 0, 0, 0)\n";

/// The script's process.
fn begun(helper: u32) -> Option<Process> {
    let name = |pid| std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    below(helper).into_iter().find(|process| name(process.pid) == "begun\n")
}

fn has_begun(pool: &Pool) -> bool {
    begun(pool.helper_pid()).is_some()
}

#[test]
fn a_job_whose_worker_or_fork_server_dies_is_done_by_another() {
    let pool = start(1);
    for depth in ["worker", "fork-server", "loader"] {
        let (_folder, job) = job(&format!("{BEGUN}time.sleep(3); print('done')"), LIMITS);
        std::thread::scope(|scope| {
            let running = scope.spawn(|| pool.run(job));
            wait_until("the script begins", || has_begun(&pool));
            let worker = worker_of(&pool);
            let server = children(worker)[0];
            let victim = match depth {
                "worker" => worker,
                "fork-server" => server,
                _ => children(server)[0], // made before the keeper
            };
            signal(victim, "KILL");
            let verdict = running.join().unwrap().unwrap();
            assert_eq!((verdict.outcome, verdict.stdout.as_str()), (Outcome::Exited(0), "done\n"), "{depth}");
        });
        wait_idle(&pool, 1, 1);
    }
}

#[test]
fn cancelled_jobs_end_and_the_pool_lives_on() {
    let flag = Arc::new(AtomicBool::new(false));
    let pool = start(2).cancelled_by(flag.clone());
    let endless = format!("{BEGUN}time.sleep(1000)");
    let far = Limits { wall_seconds: 2000.0, ..LIMITS };
    // More than there are slots: some wait.
    let (_folders, jobs): (Vec<_>, Vec<_>) = (0..5).map(|_| job(&endless, far.clone())).unzip();
    std::thread::scope(|scope| {
        let waits = jobs[4].clone();
        let batch = scope.spawn(|| pool.run_many(jobs[..4].to_vec()));
        let single = scope.spawn(|| pool.run(waits));
        wait_until("a script begins", || has_begun(&pool));
        flag.store(true, Ordering::SeqCst);
        assert_eq!(batch.join().unwrap().unwrap_err().kind(), Kind::Interrupted);
        assert_eq!(single.join().unwrap().unwrap_err().kind(), Kind::Interrupted);
    });
    wait_until("the scripts are gone", || !has_begun(&pool));
    let (_folder, next) = job("print('done')", LIMITS);
    assert_eq!(pool.run(next.clone()).unwrap_err().kind(), Kind::Interrupted);
    flag.store(false, Ordering::SeqCst);
    assert_eq!(pool.run(next.clone()).unwrap().stdout, "done\n");

    // All processes are told to stop, as a service manager does it.
    std::thread::scope(|scope| {
        let running = scope.spawn(|| pool.run(jobs[0].clone()));
        wait_until("a script begins", || has_begun(&pool));
        flag.store(true, Ordering::SeqCst);
        let told: Vec<String> = below(pool.helper_pid()).iter().map(|process| process.pid.to_string()).collect();
        let _some_are_gone = Command::new("kill").arg("-TERM").args(told).arg(pool.helper_pid().to_string()).output();
        assert_eq!(running.join().unwrap().unwrap_err().kind(), Kind::Interrupted);
    });
    flag.store(false, Ordering::SeqCst);
    assert_eq!(pool.run(next).unwrap().stdout, "done\n");
}

#[test]
fn a_worker_that_died_between_jobs_is_replaced() {
    let pool = start(1);
    let dead = worker_of(&pool);
    signal(dead, "KILL");
    wait_until("the worker is gone", || processes().iter().all(|process| process.pid != dead));
    let (_folder, job) = job("print('done')", LIMITS);
    assert_eq!(pool.run(job).unwrap().stdout, "done\n");
    assert_ne!(worker_of(&pool), dead);
}

#[test]
fn what_waits_for_a_job_may_die_and_the_job_is_done_all_the_same() {
    let pool = start(1);
    if pool.protection().tier < 2 {
        println!("not possible here: in tier {} nothing waits for a job", pool.protection().tier);
        return;
    }
    for victim in ["keeper", "script"] {
        wait_idle(&pool, 1, 1);
        let server = children(worker_of(&pool))[0];
        let (loader, keeper) = (children(server)[0], children(server)[1]); // in the order in which they were made
        let pid = if victim == "keeper" { keeper } else { children(loader)[0] };
        signal(pid, "KILL");
        wait_until("it is gone", || processes().iter().all(|process| process.pid != pid));
        let (_folder, job) = job("print('done')", LIMITS);
        let verdict = pool.run(job).unwrap();
        assert_eq!((verdict.outcome, verdict.stdout.as_str()), (Outcome::Exited(0), "done\n"), "{victim}");
    }
}

#[test]
fn a_job_that_takes_three_workers_with_it_is_given_up_and_the_pool_lives_on() {
    let pool = start(1);
    let (_folder, deadly) = job(&format!("{BEGUN}time.sleep(1000)"), LIMITS);
    let deadly = Job { id: "deadly".into(), ..deadly };
    std::thread::scope(|scope| {
        let running = scope.spawn(|| pool.run(deadly.clone()));
        let mut earlier = None;
        for _attempt in 0..3 {
            // What is left of the attempt before may be seen, or not seen, while it is handed to another parent.
            wait_until("the script begins", || begun(pool.helper_pid()).is_some_and(|now| Some(now.pid) != earlier));
            earlier = begun(pool.helper_pid()).map(|process| process.pid);
            signal(worker_of(&pool), "KILL");
        }
        assert_eq!(running.join().unwrap().unwrap().outcome, Outcome::Quarantined);
    });
    let (_folder, next) = job("print('alive')", LIMITS);
    assert_eq!(pool.run(next.clone()).unwrap().stdout, "alive\n");
    // No worker is lost to it again, whatever the job of this id would do.
    let verdicts = pool.run_many(vec![deadly, Job { id: "deadly".into(), ..next.clone() }, next]).unwrap();
    let outcomes: Vec<Outcome> = verdicts.into_iter().map(|verdict| verdict.outcome).collect();
    assert_eq!(outcomes, [Outcome::Quarantined, Outcome::Quarantined, Outcome::Exited(0)]);
}

#[test]
fn a_worker_that_hangs_is_replaced_and_its_job_is_done_by_another() {
    let pool = start(1);
    let (_folder, job) = job(&format!("{BEGUN}time.sleep(3); print('done')"), LIMITS);
    std::thread::scope(|scope| {
        let running = scope.spawn(|| pool.run(job));
        wait_until("the script begins", || has_begun(&pool));
        let hanging = worker_of(&pool);
        signal(hanging, "STOP");
        let verdict = running.join().unwrap().unwrap();
        assert_eq!((verdict.outcome, verdict.stdout.as_str()), (Outcome::Exited(0), "done\n"));
        assert_ne!(worker_of(&pool), hanging);
    });
    wait_idle(&pool, 1, 1);
}

#[test]
fn dropping_the_pool_leaves_no_process() {
    let pool = start(2);
    let helper = pool.helper_pid();
    let all = wait_idle(&pool, 2, 1);
    drop(pool);
    wait_until("everything ends", || {
        let left = processes();
        left.iter().all(|process| process.pid != helper && !all.contains(process))
    });
}

#[test]
fn a_killed_trainer_leaves_no_process() {
    // This test is its own trainer: executed once more, it holds a pool with a running job until it is killed.
    if std::env::var_os("HOLD_A_POOL").is_some() {
        let pool = start(1);
        let (_folder, job) = job(&format!("{BEGUN}time.sleep(1000)"), LIMITS);
        println!("helper {}", pool.helper_pid());
        pool.run(job).unwrap();
        return;
    }
    python(); // made here, where it is locked and seen
    let mut trainer = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "processes::a_killed_trainer_leaves_no_process", "--nocapture"])
        .env("HOLD_A_POOL", "1")
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(trainer.stdout.take().unwrap()).lines().map_while(Result::ok);
    let helper: u32 = lines.filter_map(|line| line.split_once("helper ")?.1.parse().ok()).next().unwrap();
    wait_until("the job runs", || begun(helper).is_some());
    let all = below(helper);
    trainer.kill().unwrap();
    trainer.wait().unwrap();
    wait_until("everything ends", || {
        let left = processes();
        left.iter().all(|process| process.pid != helper && !all.contains(process))
    });
}
