//! Several runs at once: in one folder one of them runs and the others are told; with one cache and store all come to the same as one alone.

use crate::processes::Leftovers;
use crate::results::Right;
use crate::stage::{HANGS, Life, Room, Stage, Verb};
use std::process::Command;
use std::time::{Duration, Instant};

/// `count` runs begin at once in one folder, where none, or an earlier run, is: all but one are refused by name. The one goes on till it is told to stop.
pub fn one_folder(stage: &Stage, right: &Right, count: usize, is_resumed: bool) {
    let what = format!("{count} runs of {} in one folder", right.verb.name());
    let mut rooms: Vec<Room> = (0..count).map(|_| Room::new(stage)).collect();
    let (mut left, out) = (Leftovers::before(), rooms[0].out.clone());
    rooms.iter_mut().for_each(|room| room.out = out.clone());
    // Long enough for all the others to be refused, however late they come.
    let endless = ["sft.epochs=100000"];
    let more: Vec<&str> = if is_resumed { [&endless[..], &["--resume"]].concat() } else { endless.to_vec() };
    let mut lives: Vec<Life> = rooms.iter().map(|room| room.start(stage, right.verb, &more, &[])).collect();
    let mut codes = vec![None; count];
    let deadline = Instant::now() + HANGS;
    while codes.iter().filter(|code| code.is_none()).count() > 1 {
        assert!(Instant::now() < deadline, "{what}: more than one run");
        for (life, code) in lives.iter_mut().zip(&mut codes).filter(|(_, code)| code.is_none()) {
            *code = life.end_within(Duration::from_millis(5));
        }
    }
    for (room, code) in rooms.iter().zip(&codes).filter(|(_, code)| code.is_some()) {
        let said = room.said();
        assert_eq!(*code, Some(Some(2)), "{what}: {said}");
        assert!(said.contains(&out.display().to_string()) && said.contains("--out"), "{what}: {said}");
    }
    let winner = codes.iter().position(Option::is_none).expect("one goes on");
    while rooms[winner].logged() <= 2 {
        assert!(Instant::now() < deadline, "{what}: {}", rooms[winner].said());
        assert_eq!(lives[winner].end_within(Duration::from_millis(5)), None, "{what}: {}", rooms[winner].said());
    }
    assert!(Command::new("kill").args(["-INT", &lives[winner].pid().to_string()]).status().unwrap().success());
    assert_eq!(lives[winner].end(), Some(130), "{what}: {}", rooms[winner].said());
    rooms.iter().for_each(|room| drop(left.count(room)));
    // The folder is free again.
    rooms[0].succeeds(stage, right.verb, &[]);
    right.check_end(&out, &what);
}

/// `count` runs at once, each in a folder of its own, with one cache: that of none before, or `warm`.
pub fn one_cache(stage: &Stage, right: &Right, count: usize) {
    let what = format!("{count} runs of {} with one cache", right.verb.name());
    let mut rooms: Vec<Room> = (0..count).map(|_| Room::cold()).collect();
    let (mut left, cache) = (Leftovers::before(), rooms[0].cache.clone());
    rooms.iter_mut().for_each(|room| room.cache = cache.clone());
    let more = ["run.reuse_rewards=true"];
    for round in 0..2 {
        // The second time on what the first has left in the store.
        let mut lives: Vec<Life> = rooms.iter().map(|room| room.start(stage, right.verb, &more, &[])).collect();
        for (room, life) in rooms.iter().zip(&mut lives) {
            left.look(room);
            assert_eq!(life.end(), Some(0), "{what}, round {round}: {}", room.said());
            right.check_end(&room.out, &format!("{what}, round {round}"));
        }
    }
    assert!(cache.join("onestep/store.sqlite").exists() == matches!(right.verb, Verb::Ppo | Verb::Grpo), "{what}");
    rooms.iter().for_each(|room| drop(left.count(room)));
}
