//! `onestep export`: writes a model for other programs, with an adapter merged in on request. crate::export does the
//! work.

use super::args::{ExportArgs, Format, WeightType};
use super::session;
use crate::backend::cpu::Cpu;
use crate::console::{errln, outln};
use crate::error::{Error, Result};
use crate::export::gguf::{self, Storage};
use crate::export::{self, Source};
use crate::model::Policy;
use crate::tensor::DType;

/// Default limit on the bytes of a weight file.
const SHARD_SIZE: u64 = 5_000_000_000;

/// `onestep export`
pub fn run(args: &ExportArgs) -> Result<()> {
    match (&args.adapter, args.merge) {
        (Some(_), false) => {
            return Err(Error::usage(
                "--adapter without --merge: no adapter stands beside an exported model; add --merge to fold it into the \
                 weights (the adapter's own folder loads in PEFT as it is)",
            ));
        }
        (None, true) => {
            return Err(Error::usage(
                "--merge without --adapter: name the adapter to fold in, for example --adapter runs/sft/adapter",
            ));
        }
        _ => {}
    }
    let config = session::settings(&[], &[], "run")?;
    session::threads(&config)?;
    let model = session::model(&Cpu, &args.model)?;
    let adapter = session::adapter(&Cpu, &model, &args.model, args.adapter.as_deref())?;
    let policy = Policy { model: &model, adapter: adapter.as_ref() };
    let source = Source { policy, folder: &args.model };
    match args.format {
        Format::Hf => folder(args, source),
        Format::Gguf => file(args, source),
    }
}

fn folder(args: &ExportArgs, source: Source) -> Result<()> {
    let dtype = match args.dtype {
        WeightType::Bf16 => DType::BF16,
        WeightType::F16 => DType::F16,
        WeightType::F32 => DType::F32,
        WeightType::Q8_0 => {
            return Err(Error::usage("--dtype q8_0 is a type of GGUF: add --format gguf, or take bf16, f16 or f32"));
        }
    };
    let (shards, notes) =
        export::hugging_face(&Cpu, source, &args.out, dtype, args.shard_size.unwrap_or(SHARD_SIZE) as usize)?;
    notes.iter().for_each(|note| errln!("note: {note}"));
    outln!("{shards} weight files of {dtype:?} written to {}", args.out.display());
    if args.verify {
        let found = export::verify(&Cpu, source, &args.out, dtype)?;
        outln!(
            "verified: every tensor is the merged weight rounded once; logits of {} tokens (greatest {:.4}) differ by at most \
             {:.3e}, where rounding alone explains {:.3e} (refused beyond twice that)",
            found.tokens,
            found.greatest,
            found.difference,
            found.rounding
        );
    }
    Ok(())
}

fn file(args: &ExportArgs, source: Source) -> Result<()> {
    let refused = [("--verify", args.verify), ("--shard-size", args.shard_size.is_some())];
    if let Some((option, _)) = refused.iter().find(|(_, given)| *given) {
        return Err(Error::usage(format!(
            "{option} is for --format hf: this program writes GGUF and does not read it"
        )));
    }
    let storage = match args.dtype {
        WeightType::Bf16 => Storage::Bf16,
        WeightType::F16 => Storage::F16,
        WeightType::F32 => Storage::F32,
        WeightType::Q8_0 => Storage::Q8_0,
    };
    for note in gguf::write(&Cpu, source, &args.out, storage)? {
        errln!("note: {note}");
    }
    outln!("GGUF of {storage:?} written to {}", args.out.display());
    Ok(())
}
