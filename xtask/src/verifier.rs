//! What the verifier makes of each program: instructions it walked, size and stack, for each set of options that
//! changes what it can reach; and whether all of that leaves room on kernels that are stricter or less clever.

use std::collections::{BTreeMap, HashSet};
use std::path::Path;

use anyhow::{Context as _, bail, ensure};
use aya::programs::Program;
use aya::{Ebpf, EbpfLoader};
use aya_obj::generated::bpf_insn;

/// Instructions walked by the verifier, at most. Every kernel since 5.2 takes a million from root
/// (BPF_COMPLEXITY_LIMIT_INSNS), but older ones recognise fewer paths as equal and walk more of them: a tenth
/// leaves room for ten times as many.
const MAX_VERIFIED: u32 = 100_000;

/// Instructions of a program with the functions it calls, at most: BPF_MAXINSNS, all that any kernel before 5.2
/// took, and all that one still takes from a process without CAP_BPF.
const MAX_SIZE: usize = 4096;

/// Bytes of stack of a program with the functions it calls, at most: three quarters of MAX_BPF_STACK, which has
/// been the same since 3.18.
const MAX_STACK: usize = 384;

/// What a frame takes at least, and what it is rounded to, up to Linux 6.6 (`check_max_stack_depth`).
const FRAME_STEP: usize = 32;

/// Globals that an option of the configuration sets, by the option. mdns and llmnr belong to dns.
const OPTIONS: [(&str, &[&str]); 3] = [
    ("dns", &["DNS_ENABLED", "DNS_MDNS", "DNS_LLMNR"]),
    ("process", &["TELL_PROCESS"]),
    ("netns cookie", &["NETNS_COOKIE"]),
];

/// From include/uapi/linux/bpf.h.
const LOAD: u8 = 0x01;
const STORE: u8 = 0x02;
const STORE_REGISTER: u8 = 0x03;
const CALL: u8 = 0x85;
const MOVE: u8 = 0xbf;
const ADD: u8 = 0x07;
const PSEUDO_CALL: u8 = 1;
const FRAME_POINTER: u8 = 10;

/// One program: what it is, and the instructions walked with each set of options.
struct Measured {
    size: usize,
    stack: usize,
    verified: Vec<(String, u32)>,
}

/// Prints the table, and fails where a program is too near to a limit.
pub(crate) fn run() -> anyhow::Result<()> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../bpf-probes/flowend.bpf.o");
    let object = std::fs::read(path).context("bpf-probes/flowend.bpf.o")?;
    let mut programs = linked(&object)?;
    for set in 0..1_u8 << OPTIONS.len() {
        for (name, verified) in load(&object, set)? {
            let program = programs.get_mut(&name).with_context(|| format!("{name}: not found"))?;
            program.verified.push((words(set), verified));
        }
    }
    print(&programs);
    let tight: Vec<String> =
        programs.iter().flat_map(|(name, program)| too_near(name, program)).collect();
    ensure!(
        tight.is_empty(),
        "{}; split the program, or bound its loops more tightly (bpf-probes/src/bin/flowend)",
        tight.join("; ")
    );
    println!(
        "all within {MAX_VERIFIED} verified (the kernel: 1000000), {MAX_SIZE} instructions, {MAX_STACK} bytes of stack \
         (the kernel: 512)"
    );
    Ok(())
}

fn print(programs: &BTreeMap<String, Measured>) {
    println!("instructions walked by the verifier of Linux {}", release());
    println!(
        "{:22} {:>6} {:>6} {:>9} {:>9} {:>9}  most with",
        "program", "size", "stack", "all on", "all off", "most"
    );
    for (name, program) in programs {
        let Measured { size, stack, verified } = program;
        let of = |index: usize| verified.get(index).map_or(0, |(_, n)| *n);
        let (options, most) = most(program);
        println!(
            "{name:22} {size:>6} {stack:>6} {:>9} {:>9} {most:>9}  {options}",
            of(verified.len() - 1),
            of(0)
        );
    }
}

/// The options that cost the verifier most; of several the first.
fn most(program: &Measured) -> (&str, u32) {
    let all = program.verified.iter().map(|(options, n)| (options.as_str(), *n));
    all.reduce(|most, next| if next.1 > most.1 { next } else { most }).unwrap_or_default()
}

/// What is wrong with a program, in words.
fn too_near(name: &str, program: &Measured) -> Vec<String> {
    let (options, verified) = most(program);
    let mut wrong = Vec::new();
    if verified > MAX_VERIFIED {
        wrong.push(format!(
            "{name}: {verified} instructions verified with {options}, and at most {MAX_VERIFIED} are wanted"
        ));
    }
    if program.size > MAX_SIZE {
        wrong.push(format!(
            "{name}: {} instructions, and at most {MAX_SIZE} are wanted",
            program.size
        ));
    }
    if program.stack > MAX_STACK {
        wrong.push(format!(
            "{name}: {} bytes of stack, and at most {MAX_STACK} are wanted",
            program.stack
        ));
    }
    wrong
}

/// Which of [`OPTIONS`] are on in a set of bits.
fn words(set: u8) -> String {
    let on: Vec<&str> = (0..)
        .zip(OPTIONS)
        .filter(|(bit, _)| set >> bit & 1 == 1)
        .map(|(_, (name, _))| name)
        .collect();
    if on.is_empty() { "nothing".into() } else { on.join(", ") }
}

/// Loads every program with these options; the instructions that the verifier walked in each.
fn load(object: &[u8], set: u8) -> anyhow::Result<Vec<(String, u32)>> {
    let mut loader = EbpfLoader::new();
    // The ring is not used; the least there is.
    loader.map_max_entries("EVENTS", 4096);
    for (bit, (_, globals)) in (0..).zip(OPTIONS) {
        let value: &u8 = if set >> bit & 1 == 1 { &1 } else { &0 };
        for global in globals {
            loader.override_global(global, value, true);
        }
    }
    let mut ebpf = loader.load(object).context("flowend.bpf.o: root is needed")?;
    let load = |ebpf: &mut Ebpf| -> anyhow::Result<Vec<(String, u32)>> {
        ebpf.programs_mut()
            .map(|(name, program)| {
                Ok((name.to_owned(), verified(program).with_context(|| name.to_owned())?))
            })
            .collect()
    };
    load(&mut ebpf).with_context(|| format!("with {}", words(set)))
}

fn verified(program: &mut Program) -> anyhow::Result<u32> {
    match program {
        Program::CgroupSkb(program) => program.load()?,
        Program::CgroupSock(program) => program.load()?,
        Program::CgroupSockAddr(program) => program.load()?,
        Program::SockOps(program) => program.load()?,
        Program::TracePoint(program) => program.load()?,
        other => {
            bail!("a program of type {:?}: add it to xtask/src/verifier.rs", other.prog_type())
        }
    }
    program.info()?.verified_instruction_count().context(
        "this kernel does not tell how many instructions it verified: Linux 5.16 or newer does",
    )
}

/// Size and stack of each program of the object, with the functions it calls behind it, as it is loaded.
fn linked(object: &[u8]) -> anyhow::Result<BTreeMap<String, Measured>> {
    let mut object = aya_obj::Object::parse(object)?;
    let text: HashSet<usize> = object.functions.keys().map(|(section, _)| *section).collect();
    object.relocate_calls(&text)?;
    let measure = |(name, program): (&String, &aya_obj::Program)| {
        let function = object.functions.get(&program.function_key()).context("no code")?;
        let code = &function.instructions;
        Ok((name.clone(), Measured { size: code.len(), stack: stack(code), verified: Vec::new() }))
    };
    object.programs.iter().map(measure).collect()
}

/// Bytes of stack of a program and of the deepest chain of its functions. It reads how far below the frame pointer
/// the code goes; the verifier forbids recursion and frame pointers that are computed.
fn stack(code: &[bpf_insn]) -> usize {
    let target = |at: usize| {
        let call = &code[at];
        let is_local = call.code == CALL && call.src_reg() == PSEUDO_CALL;
        is_local.then(|| at.checked_add_signed(call.imm as isize + 1)).flatten()
    };
    let mut starts: Vec<usize> = (0..code.len()).filter_map(target).chain([0]).collect();
    starts.sort_unstable();
    starts.dedup();
    depth(code, &starts, 0, &target)
}

fn depth(
    code: &[bpf_insn],
    starts: &[usize],
    start: usize,
    target: &dyn Fn(usize) -> Option<usize>,
) -> usize {
    let end = starts.iter().copied().find(|next| *next > start).unwrap_or(code.len());
    let own = frame(&code[start..end]).max(1).next_multiple_of(FRAME_STEP);
    let called: HashSet<usize> = (start..end).filter_map(target).collect();
    own + called.into_iter().map(|called| depth(code, starts, called, target)).max().unwrap_or(0)
}

/// How far below its frame pointer a function goes.
fn frame(code: &[bpf_insn]) -> usize {
    let below = |offset: i64| usize::try_from(-offset).unwrap_or(0);
    let direct = code.iter().map(|insn| match insn.code & 0x07 {
        LOAD if insn.src_reg() == FRAME_POINTER => below(insn.off.into()),
        STORE | STORE_REGISTER if insn.dst_reg() == FRAME_POINTER => below(insn.off.into()),
        _ => 0,
    });
    // An address for a helper: a copy of the frame pointer, and what is added to it next.
    let address = (0..code.len()).map(|at| {
        let copy = &code[at];
        if copy.code != MOVE || copy.src_reg() != FRAME_POINTER {
            return 0;
        }
        let next = code[at + 1..].iter().find(|insn| insn.dst_reg() == copy.dst_reg());
        next.filter(|next| next.code == ADD).map_or(0, |next| below(next.imm.into()))
    });
    direct.chain(address).max().unwrap_or(0)
}

/// Of the running kernel; "?" where it cannot be read.
fn release() -> String {
    let text = std::fs::read_to_string("/proc/sys/kernel/osrelease");
    text.map_or_else(|_| "?".into(), |text| text.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn insn(code: u8, dst: u8, src: u8, off: i16, imm: i32) -> bpf_insn {
        let _bitfield_1 = bpf_insn::new_bitfield_1(dst, src);
        bpf_insn { code, _bitfield_align_1: [], _bitfield_1, off, imm }
    }

    #[test]
    fn the_stack_is_that_of_the_deepest_chain_of_calls() {
        const EXIT: u8 = 0x95;
        let exit = || insn(EXIT, 0, 0, 0, 0);
        let call = |to| insn(CALL, 0, PSEUDO_CALL, 0, to);
        let helper = || insn(CALL, 0, 0, 0, 1);
        let store = |off| insn(0x7b, FRAME_POINTER, 1, off, 0);
        let load = |off| insn(0x79, 1, FRAME_POINTER, off, 0);
        let address = |imm| [insn(MOVE, 2, FRAME_POINTER, 0, 0), insn(ADD, 2, 0, 0, imm)];
        let [copy, add] = address(-100);
        for (code, want) in [
            (vec![exit()], 32),
            (vec![helper(), exit()], 32),
            (vec![store(-33), exit()], 64),
            (vec![load(-64), store(-8), exit()], 64),
            (vec![copy, insn(MOVE, 3, FRAME_POINTER, 0, 0), add, exit()], 128),
            // An offset of another register is no stack.
            (vec![insn(0x79, 1, 6, -500, 0), exit()], 32),
            (vec![store(-8), call(1), exit(), store(-200), exit()], 32 + 224),
            // Two that follow each other do not add up, two that call each other do.
            (vec![call(2), call(3), exit(), store(-40), exit(), store(-8), exit()], 32 + 64),
            (vec![call(1), exit(), store(-40), call(1), exit(), store(-8), exit()], 32 + 64 + 32),
        ] {
            assert_eq!(stack(&code), want, "{code:?}");
        }
    }

    #[test]
    fn what_is_too_near_to_a_limit_is_named() {
        let program = |size, stack, verified| Measured {
            size,
            stack,
            verified: vec![("nothing".into(), 7), ("dns".into(), verified)],
        };
        assert_eq!(too_near("p", &program(MAX_SIZE, MAX_STACK, MAX_VERIFIED)), [""; 0]);
        for (program, want) in [
            (program(MAX_SIZE + 1, 0, 0), "p: 4097 instructions"),
            (program(0, MAX_STACK + 1, 0), "p: 385 bytes of stack"),
            (program(0, 0, MAX_VERIFIED + 1), "p: 100001 instructions verified with dns"),
        ] {
            let [wrong] = too_near("p", &program).try_into().unwrap();
            assert!(wrong.starts_with(want), "{wrong}");
        }
    }

    #[test]
    fn each_set_of_options_has_its_name() {
        assert_eq!(words(0), "nothing");
        assert_eq!(words(0b101), "dns, netns cookie");
        assert_eq!(words(0b111), "dns, process, netns cookie");
    }
}
