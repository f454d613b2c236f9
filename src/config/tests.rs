//! Tests of settings: layers and overrides, refusals and their messages, settings that do nothing.

use super::*;
use crate::reward::Case;

fn load(file: &str, overrides: &[&str]) -> Result<Config> {
    let overrides: Vec<String> = overrides.iter().map(ToString::to_string).collect();
    Config::load(&[("run.toml".to_string(), file.to_string())], &overrides, "rl")
}

#[test]
fn layers_and_overrides() {
    let config = load("[rl]\nsteps = 7\n[lora]\nalpha = 8\n", &["states=3", "sft.epochs=1", "tasks.names=digits,wine"]);
    let config = config.unwrap();
    assert_eq!((config.rl.steps, config.rl.states, config.sft.epochs, config.lora.alpha), (7, 3, 1, 8.0));
    assert_eq!(config.tasks.names, ["digits", "wine"]);
    let again = Config::load(&[("again".into(), config.to_toml().unwrap())], &[], "rl").unwrap();
    assert_eq!(again, config);
}

#[test]
fn errors_name_place_and_valid_value() {
    let cases: &[(&str, &[&str], &[&str])] = &[
        ("[rl]\nsteps = 7\nstepz = 8\n", &[], &["run.toml, line 3", "stepz", "steps"]),
        ("[rll]\n", &[], &["rll", "sections are"]),
        ("x = 1\n", &[], &["line 1", "outside a section"]),
        // Other forms of TOML.
        ("# a\nrl.steps = 0\n", &[], &["run.toml, line 2", "rl.steps = 0"]),
        ("rl = { samples = 2, steps = 0 }\n", &[], &["run.toml, line 1", "rl.steps = 0"]),
        ("[sft]\nepochs = 1\n\n[ rl ]\n\"steps\" = 0\n", &[], &["run.toml, line 5", "rl.steps = 0"]),
        ("[rl]\nsteps = \"many\"\n", &[], &["line 2", "rl.steps", "a whole number from 1 to", "39"]),
        ("[rl\n", &[], &["run.toml"]),
        ("[rl]\nalgorithm = \"dpo\"\n", &[], &["run.toml, line 2", "rl.algorithm", "ppo", "grpo"]),
        ("", &["stepz=1"], &["stepz=1", "keys are", "steps"]),
        ("", &["steps"], &["section.key=value"]),
        ("", &["steps=0"], &["`steps=0`", "rl.steps = 0", "expected a whole number from 1 to"]),
        ("", &["steps=-1"], &["rl.steps = -1", "expected a whole number from 1 to"]),
        // Numbers in another form than digits.
        ("", &["steps=1e3"], &["`steps=1e3`", "rl.steps = 1000.0", "a whole number from 1 to", "for example 1000"]),
        ("", &["steps=1.5"], &["rl.steps = 1.5", "a whole number from 1 to", "for example 39"]),
        ("", &["steps=18446744073709551615"], &["`steps=18446744073709551615`", "a whole number from 1 to"]),
        ("", &["steps="], &["`steps=`", "rl.steps = \"\"", "a whole number"]),
        ("", &["steps=3\nstates=4"], &["override `steps=3 states=4`", "a whole number"]),
        ("", &["gamma=x"], &["rl.gamma = \"x\"", "a number from 0 to 1"]),
        ("", &["whiten=1"], &["rl.whiten = 1", "true or false"]),
        ("", &["source=x", "eval.source=1.5"], &["`source=x`", "unknown key"]),
        ("", &["eval.source=1.5"], &["eval.source = 1.5", "text of 0 to 100 bytes"]),
        ("", &["lora.modules=[\"q\",\"q\"]"], &["lora.modules has `q` twice", "gate, up, down, each once"]),
        ("", &["lora.modules=q,q_proj"], &["lora.modules has `q_proj` twice"]),
        ("", &["lora.modules=q,w"], &["lora.modules has `w`", "q, k, v, o, gate, up, down"]),
        ("", &["lora.modules=[]"], &["lora.modules = []"]),
        ("", &["tasks.names=wine,,digits"], &["tasks.names has ``", "a list of names"]),
        ("", &["tasks.names=[1]"], &["tasks.names = [1]", "a list of names"]),
        ("[tasks]\ndir = \"a\\u0000b\"\n", &[], &["run.toml, line 2", "tasks.dir", "on one line"]),
        ("", &["chat.template_arguments=3"], &["chat.template_arguments = 3", "a table"]),
        ("", &["run.device=tpu"], &["run.device = \"tpu\"", "cuda:N"]),
        ("", &["run.workers=9999999"], &["run.workers = 9999999", "from 0 to 16 for each core, here to"]),
        ("", &["states=10000", "samples=10000"], &["`states=10000`", "`samples=10000`", "at most 1000000"]),
        ("", &["sampling.max_tokens=15000"], &["sampling.max_tokens = 15000", "environment.context_limit = 15000"]),
        ("", &["pretrain.heads=5"], &["pretrain.heads = 5", "pretrain.hidden = 192"]),
        ("", &["pretrain.kv_heads=4"], &["pretrain.kv_heads = 4", "a divisor"]),
        ("", &["initial_share=1.5"], &["rl.initial_share = 1.5", "from 0 to 1"]),
        ("", &["algorithm=grpo"], &["`algorithm=grpo`", "rl.samples"]),
        ("[rl]\nalgorithm = \"grpo\"\n", &["samples=1"], &["run.toml, line 2", "`samples=1`"]),
        // Settings under which something else would be learnt than they say, from both places they can be given.
        ("", &["sampling.top_p=0.9"], &["`sampling.top_p=0.9`", "biased", "top_p=1.0"]),
        ("[sampling]\ntop_p = 0.9\n", &[], &["run.toml, line 2", "sampling.top_p"]),
        ("", &["sampling.top_k=20"], &["sampling.top_k = 20", "biased", "top_k=0"]),
        ("", &["sampling.top_k=-1"], &["sampling.top_k = -1", "a whole number from 0 to 2147483647"]),
        ("", &["sampling.temperature=0"], &["sampling.temperature = 0", "above 0"]),
        ("", &["kl_in=loss"], &["`kl_in=loss`", "k1", "k2"]),
        ("", &["kl_estimator=k1", "kl_in=loss"], &["`kl_estimator=k1`", "`kl_in=loss`"]),
        ("", &["clip_low=-0.5"], &["rl.clip_low = -0.5", "[0, 1)", "0.2"]),
        ("", &["clip_low=1"], &["rl.clip_low"]),
        ("", &["clip_high=-0.1"], &["rl.clip_high"]),
        ("", &["gamma=7"], &["`gamma=7`", "rl.gamma = 7", "from 0 to 1"]),
        ("", &["lambda=-0.1"], &["rl.lambda"]),
        ("", &["entropy_coefficient=-3"], &["rl.entropy_coefficient = -3", "from 0 to"]),
        ("", &["gamma=nan"], &["`gamma=nan`", "finite"]),
        ("", &["learning_rate=inf"], &["rl.learning_rate", "finite"]),
        ("", &["learning_rate=1e300"], &["rl.learning_rate = 1e300", "from 0 to 1000000000"]),
        ("[run]\ngpu_memory = nan\n", &[], &["run.toml, line 2", "run.gpu_memory", "finite"]),
        ("", &["reply_scale=0"], &["rl.reply_scale = 0", "from 0.000001 to"]),
        ("", &["group_epsilon=-1"], &["rl.group_epsilon"]),
        ("", &["dual_clip=1"], &["rl.dual_clip = 1", "above 1", "3.0"]),
        ("", &["dual_clip=-2"], &["rl.dual_clip"]),
        ("", &["weight_decay=-0.1"], &["rl.weight_decay"]),
        ("", &["sft.weight_decay=-0.1"], &["sft.weight_decay"]),
        ("", &["beta1=1"], &["rl.beta1 = 1", "[0, 1)"]),
        ("", &["beta2=-0.1"], &["rl.beta2"]),
        ("", &["sft.beta1=1.0"], &["sft.beta1"]),
        ("", &["sft.beta2=2"], &["sft.beta2"]),
        ("", &["value_clip=-1"], &["rl.value_clip"]),
        ("", &["max_norm=-1"], &["rl.max_norm"]),
        ("", &["target_kl=-1"], &["rl.target_kl"]),
        ("", &["overlong_penalty=-1"], &["rl.overlong_penalty"]),
        ("", &["overlong=soft"], &["`overlong=soft`", "rl.overlong_buffer = 0", "1024"]),
        ("", &["overlong_buffer=64", "overlong=soft", "sampling.max_tokens=64"], &["`sampling.max_tokens=64`"]),
        ("", &["states=24", "minibatches=7"], &["`minibatches=7`", "`states=24`", "rl.minibatches=6"]),
        ("", &["warmup=39"], &["rl.warmup = 39", "rl.steps = 39"]),
        ("", &["critic_warmup=40", "steps=20"], &["rl.critic_warmup = 40", "never be trained"]),
        ("", &["reward.clip=-1"], &["reward.clip"]),
        ("", &["reward.flagged=none"], &["reward.flagged", "full", "neutral"]),
    ];
    for (file, overrides, parts) in cases {
        let error = load(file, overrides).unwrap_err();
        assert_eq!(error.exit_code(), 2);
        for part in *parts {
            assert!(error.to_string().contains(part), "{error} lacks {part}");
        }
    }
}

#[test]
fn settings_are_checked_together_in_any_order() {
    let cases: &[(&str, &[&str])] = &[
        ("", &["algorithm=grpo", "samples=8"]),
        ("", &["samples=8", "algorithm=grpo"]),
        ("[rl]\nalgorithm = \"grpo\"\n", &["samples=8"]),
        ("", &["kl_in=loss", "kl_estimator=k2"]),
        ("", &["kl_in=loss", "kl_coefficient=0"]),
        ("", &["minibatches=3", "states=24"]),
        ("", &["warmup=50", "steps=60"]),
        ("", &["overlong=soft", "overlong_buffer=256"]),
        ("", &["dual_clip=0", "max_norm=0", "value_clip=0"]),
    ];
    for (file, overrides) in cases {
        load(file, overrides).unwrap_or_else(|e| panic!("{overrides:?}: {e}"));
    }
    // Settings that bias learning are allowed where nothing is learnt.
    for text in ["sampling.top_p=0.9", "sampling.top_k=20", "sampling.temperature=0"] {
        Config::load(&[], &[text.to_string()], "eval").unwrap();
    }
}

#[test]
fn settings_that_do_nothing_are_named() {
    let cases: &[(&str, &[&str], &[&str])] = &[
        ("", &["algorithm=grpo", "samples=8", "gamma=0.9"], &["rl.gamma does nothing with rl.algorithm = \"grpo\""]),
        ("", &["whiten=true", "samples=8", "algorithm=grpo"], &["rl.whiten does nothing"]),
        ("[rl]\nlambda = 0.9\nsamples = 2\n", &["algorithm=grpo"], &["rl.lambda", "run.toml, line 2"]),
        ("", &["group_epsilon=0.1"], &["rl.group_epsilon does nothing with rl.algorithm = \"ppo\""]),
        ("", &["drop_dead_groups=true"], &["rl.drop_dead_groups"]),
        ("", &["objective=cispo", "dual_clip=4"], &["rl.dual_clip does nothing with rl.objective = \"cispo\""]),
        ("", &["overlong_penalty=2"], &["rl.overlong_penalty does nothing with rl.overlong = \"keep\""]),
        ("", &["overlong=penalise", "overlong_buffer=9"], &["rl.overlong_buffer"]),
        ("", &["reply_scale=4"], &["rl.reply_scale does nothing with rl.loss_average = \"token\""]),
        ("", &["kl_coefficient=0", "kl_estimator=k3"], &["rl.kl_estimator does nothing with rl.kl_coefficient = 0"]),
        ("", &["target_kl=0.1"], &["rl.target_kl does nothing with rl.epochs = 1"]),
        ("[reward]\nform = \"sigmoid\"\nclip = 2.0\n", &[], &["reward.clip does nothing with reward.form"]),
        ("", &["gamma=0.9", "states=64"], &[]),
        // A value equal to the default is not noted.
        ("[rl]\ngroup_epsilon = 0.02\n", &[], &[]),
    ];
    for (file, overrides, parts) in cases {
        let overrides: Vec<String> = overrides.iter().map(ToString::to_string).collect();
        let layers = [("run.toml".to_string(), file.to_string())];
        let (_, notes) = Config::load_noting(&layers, &overrides, "rl").unwrap();
        assert_eq!(notes.len(), usize::from(!parts.is_empty()), "{overrides:?}: {notes:?}");
        assert!(parts.iter().all(|part| notes[0].contains(part)), "{notes:?} lack {parts:?}");
    }
    let bundled = include_str!("../../data/config/quickstart.toml").to_string();
    let (_, notes) = Config::load_noting(&[(format!("/x/{BUNDLED}"), bundled)], &[], "rl").unwrap();
    assert!(notes.is_empty(), "{notes:?}");
}

#[test]
fn flagged_submissions_earn_what_is_said() {
    for (flagged, case, expected) in [
        ("full", Case::Edit, 0.3),
        ("neutral", Case::Edit, 0.0),
        ("neutral", Case::Error, -1.0),
        ("neutral", Case::Invalid, -1.0),
    ] {
        let reward = load("", &[&format!("reward.flagged={flagged}")]).unwrap().reward;
        assert_eq!(reward.of(case, 0.3, true), expected, "{flagged} {case:?}");
        assert_eq!(reward.of(Case::Edit, 0.3, false), 0.3);
    }
}
