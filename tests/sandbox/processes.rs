//! What becomes of processes: those of a job, and those that run jobs, when they die, hang or are not wanted any more.

use super::{BEST, HELPER_ARGUMENT, LIMITS, Process, below, job, processes, python, start, wait_until, worker_of};
use onestep::error::Kind;
use onestep::sandbox::{Job, Limits, Outcome, Pool, Wanted};
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

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
    let program = Path::new(env!("CARGO_BIN_EXE_onestep"));
    let pool = Pool::start(program, 2, python(), &BEST, flag.clone()).unwrap();
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
fn a_process_that_has_the_number_of_a_dead_worker_is_left_alone() {
    const TEST: &str = "a_process_that_has_the_number_of_a_dead_worker_is_left_alone";
    if std::env::var("HOLD_A_POOL_FOR").is_ok_and(|name| name == TEST) {
        let pool = start_small(2);
        let (worker, stopped) = (worker_of(&pool), children(pool.helper_pid())[1]);
        // While the helper waits for this one, which does not end by itself, the other one's number is given away.
        signal(stopped, "STOP");
        let dropping = std::thread::spawn(|| drop(pool));
        wait_until("the worker is gone", || processes().iter().all(|process| process.pid != worker));
        let mut other = loop {
            std::fs::write("/proc/sys/kernel/ns_last_pid", (worker - 1).to_string()).unwrap();
            let mut other = Command::new("sleep").arg("1000").spawn().unwrap();
            if other.id() == worker {
                break other;
            }
            other.kill().unwrap();
            other.wait().unwrap();
        };
        dropping.join().unwrap();
        assert!(other.try_wait().unwrap().is_none(), "it was killed");
        other.kill().unwrap();
        return;
    }
    // Executed once more, with process numbers of its own, which are given to others as it likes.
    let own = |program: &Path| {
        let mut command = Command::new("unshare");
        command.args(["--pid", "--fork", "--mount-proc"]).arg(program);
        command
    };
    if !own(Path::new("true")).status().is_ok_and(|status| status.success()) {
        println!("not possible here: process numbers of its own");
        return;
    }
    python(); // made here, where it is locked and seen
    let mut command = own(&std::env::current_exe().unwrap());
    command.args(["--exact", &format!("processes::{TEST}"), "--nocapture"]).env("HOLD_A_POOL_FOR", TEST);
    assert!(command.status().unwrap().success());
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

/// A pool with few libraries, for tests of what happens to its processes.
fn start_small(workers: usize) -> Pool {
    let wanted = Wanted { preload: Some(vec![]), ..BEST };
    Pool::start(Path::new(env!("CARGO_BIN_EXE_onestep")), workers, python(), &wanted, Arc::default()).unwrap()
}

/// Whatever waits for a stopped process notices it by the heartbeats that it no longer makes; the job's own limits are far away.
#[test]
fn a_stopped_process_between_the_trainer_and_a_script_is_noticed_and_its_job_is_done_by_another() {
    let far = Limits { wall_seconds: 2000.0, ..LIMITS };
    std::thread::scope(|scope| {
        for victim in ["worker", "fork-server", "loader", "keeper", "waiting keeper", "waiting loader"] {
            let far = &far;
            scope.spawn(move || {
                let pool = start_small(1);
                if pool.protection().tier < 2 && (victim.ends_with("keeper") || victim.starts_with("waiting")) {
                    println!("not possible here: in tier {} there is no {victim}", pool.protection().tier);
                    return;
                }
                wait_idle(&pool, 1, 1);
                let worker = worker_of(&pool);
                let server = children(worker)[0];
                let (loader, keeper) = (children(server)[0], children(server).get(1).copied()); // in the order in which they were made
                let pid = match victim {
                    "worker" => worker,
                    "fork-server" => server,
                    "loader" | "waiting loader" => loader,
                    _ => keeper.unwrap(),
                };
                let (_folder, job) = job(&format!("{BEGUN}time.sleep(3); print('done')"), far.clone());
                if victim.starts_with("waiting") {
                    signal(pid, "STOP");
                }
                std::thread::scope(|scope| {
                    let running = scope.spawn(|| pool.run(job));
                    if !victim.starts_with("waiting") {
                        wait_until("the script begins", || has_begun(&pool));
                        signal(pid, "STOP");
                    }
                    let verdict = running.join().unwrap().unwrap();
                    assert_eq!((verdict.outcome, verdict.stdout.as_str()), (Outcome::Exited(0), "done\n"), "{victim}");
                    assert!(processes().iter().all(|process| process.pid != pid), "{victim} is left");
                });
                wait_idle(&pool, 1, 1);
            });
        }
    });
}

#[test]
fn a_loader_that_is_stopped_while_it_loads_is_noticed() {
    // By this name the processes of this pool are found before it has begun.
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let program = folder.path().join("onestep");
    std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_onestep"), &program).unwrap();
    let name = program.to_str().unwrap();
    let said = |file: &str, pid: u32| std::fs::read_to_string(format!("/proc/{pid}/{file}")).unwrap_or_default();
    std::thread::scope(|scope| {
        let starting = scope.spawn(|| Pool::start(&program, 1, python(), &BEST, Arc::default()).err());
        wait_until("the loader is stopped while it loads", || {
            let helper = children(std::process::id()).into_iter().find(|&pid| said("cmdline", pid).contains(name));
            let all = helper.map_or(vec![], below);
            let loader = all.iter().map(|process| process.pid).find(|&pid| said("maps", pid).contains("numpy"));
            loader.is_some_and(|pid| {
                signal(pid, "STOP");
                true
            })
        });
        wait_until("the start ends", || starting.is_finished());
        let error = starting.join().unwrap().unwrap();
        assert!(error.to_string().contains("a stopped fork-server or loader"), "{error}");
    });
}

/// What a job leaves may take longer to be gone than anybody may be silent: here a process that someone outside does not wait for.
#[test]
fn a_job_that_takes_long_to_be_gone_is_not_taken_for_a_stopped_process() {
    std::thread::scope(|scope| {
        for (wall_seconds, expected) in [(2000.0, Outcome::Signaled(9)), (10.0, Outcome::WallLimit)] {
            scope.spawn(move || {
                let pool = start_small(1);
                if pool.protection().tier < 2 {
                    println!("not possible here: in tier {} there is no namespace to be ended", pool.protection().tier);
                    return;
                }
                let worker = worker_of(&pool);
                let (_folder, long) = job(&format!("{BEGUN}time.sleep(1000)"), Limits { wall_seconds, ..LIMITS });
                std::thread::scope(|scope| {
                    let running = scope.spawn(|| pool.run(long));
                    wait_until("the script begins", || has_begun(&pool));
                    let script = begun(pool.helper_pid()).unwrap().pid;
                    let mut command = Command::new("nsenter");
                    let mut outside = command.args(["-t", &script.to_string(), "-p", "sleep", "1000"]).spawn().unwrap();
                    let mut may_not = false;
                    wait_until("a process enters", || {
                        may_not = outside.try_wait().unwrap().is_some();
                        may_not || !children(outside.id()).is_empty()
                    });
                    if may_not {
                        println!("not possible here: entering a job's namespace");
                    } else {
                        signal(outside.id(), "STOP");
                    }
                    if expected == Outcome::Signaled(9) {
                        signal(script, "KILL");
                    }
                    wait_until("the script ends", || !has_begun(&pool));
                    if !may_not {
                        std::thread::sleep(Duration::from_secs(25));
                        signal(outside.id(), "CONT");
                        outside.wait().unwrap();
                    }
                    assert_eq!(running.join().unwrap().unwrap().outcome, expected);
                });
                let (_folder, next) = job("print('done')", LIMITS);
                assert_eq!(pool.run(next).unwrap().stdout, "done\n");
                assert_eq!(worker_of(&pool), worker, "{expected:?}");
            });
        }
    });
}

#[test]
fn without_its_helper_a_pool_says_which_process_is_wrong_and_to_resume() {
    std::thread::scope(|scope| {
        for (name, word) in [("KILL", "has ended"), ("STOP", "is stopped")] {
            scope.spawn(move || {
                let pool = start_small(1);
                let (helper, worker) = (pool.helper_pid(), worker_of(&pool));
                signal(helper, name);
                signal(worker, "KILL");
                wait_until("the worker ends", || processes().iter().all(|process| process.pid != worker));
                let (_folder, job) = job("print('done')", LIMITS);
                let error = pool.run(job).unwrap_err();
                let text = error.to_string();
                assert_eq!(error.kind(), Kind::System);
                assert!(
                    text.contains(&helper.to_string()) && text.contains(word) && text.contains("--resume"),
                    "{text}"
                );
                drop(pool);
                wait_until("the helper ends", || processes().iter().all(|process| process.pid != helper));
            });
        }
    });
}

#[test]
fn a_start_that_is_not_wanted_any_more_ends_at_once() {
    // A helper that answers nothing, and ends with the pool.
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let helper = folder.path().join("helper");
    std::fs::write(&helper, "#!/bin/sh\nexec cat\n").unwrap();
    std::fs::set_permissions(&helper, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let cancelled = Arc::new(AtomicBool::new(true));
    let error = Pool::start(&helper, 1, python(), &BEST, cancelled).err().unwrap();
    assert_eq!(error.kind(), Kind::Interrupted, "{error}");
}

/// What this process is executed once more for, by the name of the test that does it: to hold a pool until it is killed.
fn hold_a_pool(test: &str, workers: usize) -> bool {
    if std::env::var("HOLD_A_POOL_FOR").is_ok_and(|name| name == test) {
        let pool = start_small(workers);
        println!("helper {}", pool.helper_pid());
        wait_until("its end", || false);
    }
    false
}

fn trainer(test: &str, temporary: &Path) -> Child {
    python(); // made here, where it is locked and seen
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", &format!("processes::{test}"), "--nocapture"]).env("HOLD_A_POOL_FOR", test);
    command.env("TMPDIR", temporary).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap()
}

/// The helper and the workers of a trainer, its children included.
fn helper_of(trainer: u32) -> Option<u32> {
    let is_helper = |pid: &u32| {
        std::fs::read_to_string(format!("/proc/{pid}/cmdline")).is_ok_and(|line| line.contains(HELPER_ARGUMENT))
    };
    children(trainer).into_iter().find(is_helper)
}

#[test]
fn a_helper_forks_no_more_workers_when_its_trainer_is_gone() {
    const TEST: &str = "a_helper_forks_no_more_workers_when_its_trainer_is_gone";
    const WORKERS: usize = 60;
    hold_a_pool(TEST, WORKERS);
    let folder = tempfile::tempdir().unwrap();
    let mut trainer = trainer(TEST, folder.path());
    let mut helper = None;
    wait_until("the helper forks", || {
        helper = helper_of(trainer.id());
        helper.is_some_and(|helper| !children(helper).is_empty())
    });
    let helper = helper.unwrap();
    // Stopped, it cannot look for its trainer, and what the trainer has asked for waits for it.
    signal(helper, "STOP");
    let before = children(helper);
    assert!(before.len() < WORKERS / 2, "{} workers by then", before.len());
    trainer.kill().unwrap();
    trainer.wait().unwrap();
    signal(helper, "CONT");
    let mut after = std::collections::BTreeSet::new();
    wait_until("the helper ends", || {
        after.extend(children(helper).into_iter().filter(|pid| !before.contains(pid)));
        processes().iter().all(|process| process.pid != helper)
    });
    assert!(after.len() <= 1, "{} workers were forked for nobody", after.len());
}

/// Control groups of this program anywhere on the machine, by the process that made them.
fn groups_of(pids: &[u32]) -> Vec<PathBuf> {
    let (mut found, mut todo) = (vec![], vec![PathBuf::from("/sys/fs/cgroup")]);
    while let Some(folder) = todo.pop() {
        let name = folder.file_name().unwrap().to_string_lossy().into_owned();
        let pid = name.strip_prefix("onestep-").and_then(|rest| rest.split('-').next()?.parse().ok());
        found.extend(pid.filter(|pid| pids.contains(pid)).map(|_| folder.clone()));
        let entries = std::fs::read_dir(&folder).into_iter().flatten().flatten();
        todo.extend(
            entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())).map(|entry| entry.path()),
        );
    }
    found
}

#[test]
fn a_pool_whose_helper_was_killed_leaves_no_control_group() {
    let pool = start_small(2);
    let (helper, workers) = (pool.helper_pid(), children(pool.helper_pid()));
    assert_eq!(groups_of(&workers).is_empty(), pool.protection().tier < 3);
    signal(helper, "KILL");
    drop(pool);
    let left = groups_of(&workers);
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn what_a_killed_run_leaves_goes_when_the_next_begins_and_takes_nothing_from_it() {
    const TEST: &str = "what_a_killed_run_leaves_goes_when_the_next_begins_and_takes_nothing_from_it";
    // Executed once more it begins the next run, in its own folder for temporary files.
    hold_a_pool(TEST, 1);
    let temporary = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let folders =
        || std::fs::read_dir(temporary.path()).unwrap().map(|entry| entry.unwrap().path()).collect::<Vec<_>>();
    let begun = |trainer: &mut Child| -> u32 {
        let lines = BufReader::new(trainer.stdout.take().unwrap()).lines().map_while(Result::ok);
        lines.filter_map(|line| line.split_once("helper ")?.1.parse().ok()).next().unwrap()
    };
    let mut first = trainer(TEST, temporary.path());
    let helper = begun(&mut first);
    let processes_of_first = below(helper);
    let pids: Vec<u32> = processes_of_first.iter().map(|process| process.pid).collect();
    let left = folders();
    assert_eq!(left.len(), 1, "{left:?}");
    // Killed from below the helper on, so that nobody tidies.
    signal(helper, "STOP");
    first.kill().unwrap();
    first.wait().unwrap();
    signal(helper, "KILL");
    wait_until("all end", || {
        processes().iter().all(|process| process.pid != helper && !processes_of_first.contains(process))
    });
    let groups = groups_of(&pids);
    assert_eq!(folders(), left);
    let mut second = trainer(TEST, temporary.path());
    begun(&mut second);
    let held = folders();
    assert!(held.len() == 1 && held != left, "{held:?}");
    assert_eq!(groups_of(&pids), Vec::<PathBuf>::new(), "of {groups:?}");
    // A third one removes nothing that the second has.
    let mut third = trainer(TEST, temporary.path());
    begun(&mut third);
    assert_eq!((folders().len(), held[0].exists()), (2, true));
    for mut trainer in [second, third] {
        trainer.kill().unwrap();
        trainer.wait().unwrap();
    }
}

/// Where a worker can no longer have what the run began with, the run is told so.
#[test]
fn a_worker_that_is_replaced_does_not_lower_the_tier() {
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    // A helper in mounts of its own, where control groups are made read-only later.
    let own = folder.path().join("helper");
    std::fs::write(&own, format!("#!/bin/sh\nexec unshare -m {} \"$@\"\n", env!("CARGO_BIN_EXE_onestep"))).unwrap();
    std::fs::set_permissions(&own, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let wanted = Wanted { preload: Some(vec![]), ..BEST };
    let pool = Pool::start(&own, 1, python(), &wanted, Arc::default());
    let Some(pool) = pool.ok().filter(|pool| pool.protection().tier == 3) else {
        println!("not possible here: a helper in mounts of its own has no tier 3");
        return;
    };
    let mounts = std::fs::read_to_string(format!("/proc/{}/mounts", pool.helper_pid())).unwrap();
    for mount in mounts.lines().filter(|line| line.contains(" cgroup")) {
        let place = mount.split(' ').nth(1).unwrap();
        let mut command = Command::new("nsenter");
        command.args(["-t", &pool.helper_pid().to_string(), "-m", "mount", "-o", "remount,ro,bind", place]);
        assert!(command.status().unwrap().success(), "{place}");
    }
    let (_folder, job) = job("print('done')", LIMITS);
    let worker = worker_of(&pool);
    signal(worker, "KILL");
    wait_until("the worker ends", || processes().iter().all(|process| process.pid != worker));
    let error = pool.run(job).unwrap_err().to_string();
    assert!(error.contains("only tier 2") && error.contains("began in tier 3") && error.contains("cgroup"), "{error}");
}
