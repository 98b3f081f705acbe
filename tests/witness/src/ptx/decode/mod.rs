//! From statements to a program: scopes, registers, constants, labels. The instructions themselves are in the files below;
//! opcodes are matched whole, so that what is not modelled exactly is an error by name.

mod arithmetic;
mod memory;
mod warp;

use super::parse::{Entry, Loc, Module, Operand, Statement};
pub use super::program::Program;
use super::program::{Class, Instruction, NEGATED, Op, Place};
use std::collections::HashMap;

type Result<T> = std::result::Result<T, String>;

/// Bits of a type, by its name without the dot.
pub(crate) fn bits_of(name: &str) -> Option<u32> {
    Some(match name {
        "pred" => 1,
        "b8" | "u8" | "s8" => 8,
        "b16" | "u16" | "s16" | "bf16" | "f16" => 16,
        "b32" | "u32" | "s32" | "f32" => 32,
        "b64" | "u64" | "s64" | "f64" => 64,
        _ => return None,
    })
}

fn class_of(bits: u32) -> Class {
    match bits {
        1 => Class::Predicate,
        64 => Class::Long,
        _ => Class::Word,
    }
}

/// Makes a program of an entry of a module whose global variables lie at `globals`.
///
/// # Errors
/// What cannot be read or is not modelled, with its PTX line.
pub fn decode(module: &Module, name: &str, globals: &HashMap<String, u64>) -> Result<Program> {
    let entry = module.entry(name)?;
    let mut d = Decoder::new(module, &entry, globals);
    for s in &entry.statements {
        d.statement(s)?;
    }
    d.close()?;
    d.emit(Op::Exit);
    let mut program = d.program;
    super::registers::allocate(&mut program);
    Ok(program)
}

/// What is named between two braces.
#[derive(Default)]
struct Block {
    registers: HashMap<String, (Class, u32)>,
    labels: HashMap<String, u32>,
    jumps: Vec<(usize, String)>,
}

struct Decoder<'a> {
    globals: &'a HashMap<String, u64>,
    entry: &'a Entry,
    /// `%r<100>`: class, first slot, how many.
    ranges: HashMap<String, (Class, u32, u32)>,
    blocks: Vec<Block>,
    locals: HashMap<String, u64>,
    word_constants: HashMap<u32, u32>,
    long_constants: HashMap<u64, u32>,
    special_slots: HashMap<String, u32>,
    line: u32,
    source: Loc,
    program: Program,
}

impl<'a> Decoder<'a> {
    fn new(module: &Module, entry: &'a Entry, globals: &'a HashMap<String, u64>) -> Self {
        let program = Program {
            name: entry.name.clone(),
            code: Vec::new(),
            places: Vec::new(),
            accesses: Vec::new(),
            lists: Vec::new(),
            slots: 0,
            predicates: 0,
            words: Vec::new(),
            longs: Vec::new(),
            specials: Vec::new(),
            parameter_bytes: entry.parameter_bytes,
            local_bytes: 0,
            max_threads: entry.max_threads,
            touched: Vec::new(),
            unfenced: Vec::new(),
            files: module.files.clone(),
        };
        Self {
            globals,
            entry,
            ranges: HashMap::new(),
            blocks: vec![Block::default()],
            locals: HashMap::new(),
            word_constants: HashMap::new(),
            long_constants: HashMap::new(),
            special_slots: HashMap::new(),
            line: 0,
            source: Loc::default(),
            program,
        }
    }

    fn emit(&mut self, op: Op) -> &mut Instruction {
        self.program.places.push(Place { line: self.line, source: self.source });
        self.program.code.push(Instruction { op, d: 0, a: 0, b: 0, c: 0, imm: 0, guard: 0 });
        let last = self.program.code.len() - 1;
        &mut self.program.code[last]
    }

    fn innermost(&mut self) -> Result<&mut Block> {
        self.blocks.last_mut().ok_or_else(|| "a brace closes twice".to_string())
    }

    fn close(&mut self) -> Result<()> {
        let Some(block) = self.blocks.pop() else { return Err("a brace closes twice".into()) };
        for (at, name) in block.jumps {
            match block.labels.get(&name) {
                Some(to) => self.program.code[at].imm = i64::from(*to),
                None => {
                    self.blocks.last_mut().ok_or_else(|| format!("no label {name}"))?.jumps.push((at, name))
                }
            }
        }
        Ok(())
    }

    fn statement(&mut self, s: &Statement) -> Result<()> {
        match s {
            Statement::Label(name) => {
                let at = self.program.code.len() as u32;
                self.innermost()?.labels.insert(name.clone(), at);
            }
            Statement::Open => self.blocks.push(Block::default()),
            // The last brace is the body's own, which `decode` closes.
            Statement::Close if self.blocks.len() > 1 => self.close()?,
            Statement::Close => {}
            Statement::Registers(kind, names) => self.registers(kind, names)?,
            Statement::Local(name, align, bytes) => {
                let at = self.program.local_bytes.next_multiple_of(*align);
                self.locals.insert(name.clone(), at as u64);
                self.program.local_bytes = at + bytes;
            }
            Statement::Source(loc) => self.source = *loc,
            Statement::Code { guard, op, operands, line } => {
                self.line = *line;
                let from = self.program.code.len();
                let result = self.code(op, operands).and_then(|()| self.guard(from, guard.as_ref()));
                result.map_err(|e| format!("PTX line {line}: {op}: {e}"))?;
            }
        }
        Ok(())
    }

    fn registers(&mut self, kind: &str, names: &[(String, Option<u32>)]) -> Result<()> {
        let class =
            class_of(bits_of(kind.trim_start_matches('.')).ok_or_else(|| format!("registers of {kind}"))?);
        for (name, count) in names {
            if count.is_some_and(|n| n > 1 << 20) {
                return Err(format!("{name}: more than a million registers"));
            }
            let first = self.take(class, count.unwrap_or(1));
            match count {
                Some(n) => drop(self.ranges.insert(name.clone(), (class, first, *n))),
                None => drop(self.innermost()?.registers.insert(name.clone(), (class, first))),
            }
        }
        Ok(())
    }

    fn guard(&mut self, from: usize, guard: Option<&(bool, String)>) -> Result<()> {
        let Some((negated, name)) = guard else { return Ok(()) };
        let Some((Class::Predicate, p)) = self.register(name) else {
            return Err(format!("no predicate {name}"));
        };
        for i in &mut self.program.code[from..] {
            i.guard = (p + 1) | if *negated { NEGATED } else { 0 };
        }
        Ok(())
    }

    fn code(&mut self, op: &str, o: &[Operand]) -> Result<()> {
        if let Some((op, imm)) = arithmetic::table(op) {
            return self.plain(op, imm, o);
        }
        let parts: Vec<&str> = op.split('.').collect();
        match parts[0] {
            "bfi" | "mov" | "cvt" => self.special_arithmetic(op, o),
            "ld" | "st" => self.load_store(&parts, o),
            "atom" | "red" => self.atomic(&parts, o),
            "membar" | "fence" => self.fence(op, o),
            "cp" => self.copy(op, o),
            "mbarrier" => self.mbarrier(op, o),
            "wgmma" => self.wgmma(op, o),
            _ => self.warp_wide(op, &parts, o),
        }
    }

    /// An instruction whose operands are what its classes say, in the order d, a, b, c.
    fn plain(&mut self, op: Op, imm: i64, o: &[Operand]) -> Result<()> {
        let classes = op.classes();
        let wanted: Vec<usize> = (0..4).filter(|i| classes[*i] != Class::None).collect();
        if wanted.len() != o.len() {
            return Err(format!("{} operands, {} wanted", o.len(), wanted.len()));
        }
        let mut slots = [0; 4];
        for (i, operand) in wanted.into_iter().zip(o) {
            slots[i] = self.value(operand, classes[i])?;
        }
        let i = self.emit(op);
        ([i.d, i.a, i.b, i.c], i.imm) = (slots, imm);
        Ok(())
    }

    fn take(&mut self, class: Class, count: u32) -> u32 {
        let p = &mut self.program;
        match class {
            Class::None => 0,
            Class::Predicate => {
                p.predicates += count;
                p.predicates - count
            }
            Class::Word => {
                p.slots += count;
                p.slots - count
            }
            Class::Long => {
                p.slots = p.slots.next_multiple_of(2) + 2 * count;
                p.slots - 2 * count
            }
        }
    }

    fn register(&self, name: &str) -> Option<(Class, u32)> {
        if let Some(found) = self.blocks.iter().rev().find_map(|b| b.registers.get(name)) {
            return Some(*found);
        }
        let prefix = name.trim_end_matches(|c: char| c.is_ascii_digit());
        let (class, first, count) = *self.ranges.get(prefix)?;
        let n: u32 = name[prefix.len()..].parse().ok()?;
        (n < count).then_some((class, first + if class == Class::Long { 2 * n } else { n }))
    }

    fn word(&mut self, bits: u32) -> u32 {
        if let Some(s) = self.word_constants.get(&bits) {
            return *s;
        }
        let slot = self.take(Class::Word, 1);
        self.word_constants.insert(bits, slot);
        self.program.words.push((slot, bits));
        slot
    }

    fn long(&mut self, bits: u64) -> u32 {
        if let Some(s) = self.long_constants.get(&bits) {
            return *s;
        }
        let slot = self.take(Class::Long, 1);
        self.long_constants.insert(bits, slot);
        self.program.longs.push((slot, bits));
        slot
    }

    /// Where a symbol lies in its own space. Dynamic shared memory is a special register, see `value`.
    fn symbol(&self, name: &str) -> Result<u64> {
        let parameter = self.entry.parameters.iter().find(|p| p.name == name).map(|p| p.offset as u64);
        let found =
            parameter.or_else(|| self.locals.get(name).copied()).or_else(|| self.globals.get(name).copied());
        found.ok_or_else(|| format!("no symbol {name}"))
    }

    fn constant(&mut self, bits: u64, class: Class) -> u32 {
        if class == Class::Long { self.long(bits) } else { self.word(bits as u32) }
    }

    /// A slot that holds an operand, of the class that is wanted.
    fn value(&mut self, o: &Operand, class: Class) -> Result<u32> {
        Ok(match (o, class) {
            (Operand::Int(v), Class::Word | Class::Long) => self.constant(*v as u64, class),
            (Operand::F32(v), Class::Word) => self.word(*v),
            (Operand::F64(v), Class::Long) => self.long(*v),
            (Operand::Name(name), _) => match self.register(name) {
                Some((found, slot)) if found == class => slot,
                Some((found, _)) => return Err(format!("{name} is a {found:?}, not a {class:?}")),
                None if name == "shared" || name.starts_with('%') => self.special(name, class)?,
                None => {
                    let at = self.symbol(name)?;
                    self.constant(at, class)
                }
            },
            (Operand::Offset(name, offset), Class::Word | Class::Long) => {
                let at = self.symbol(name)?.wrapping_add(*offset as u64);
                self.constant(at, class)
            }
            _ => return Err(format!("operand {o:?} where a {class:?} is wanted")),
        })
    }

    fn special(&mut self, name: &str, class: Class) -> Result<u32> {
        if !matches!(class, Class::Word | Class::Long) || crate::machine::special(name).is_none() {
            return Err(format!("special register {name}"));
        }
        let key = if class == Class::Long { format!("{name}:long") } else { name.to_string() };
        if let Some(slot) = self.special_slots.get(&key) {
            return Ok(*slot);
        }
        let slot = self.take(class, 1);
        self.special_slots.insert(key.clone(), slot);
        self.program.specials.push((key, slot));
        Ok(slot)
    }

    /// An address: slot, whether it has 64 bits, offset.
    fn address(&mut self, o: &Operand) -> Result<(u32, bool, i64)> {
        let Operand::Memory(base, offset) = o else { return Err(format!("{o:?} is no address")) };
        if let Operand::Name(name) = base.as_ref() {
            if let Some((class, slot)) = self.register(name) {
                return Ok((slot, class == Class::Long, *offset));
            }
            if name == "shared" {
                return Ok((self.value(base, Class::Word)?, false, *offset));
            }
        }
        Ok((self.value(base, Class::Long)?, true, *offset))
    }

    /// An address in shared memory, in 32 bits.
    fn shared_address(&mut self, o: &Operand) -> Result<(u32, i64)> {
        match self.address(o)? {
            (slot, false, offset) => Ok((slot, offset)),
            _ => Err("an address of 64 bits in shared memory".into()),
        }
    }

    fn list(&mut self, slots: &[u32]) -> u32 {
        self.program.lists.extend_from_slice(slots);
        (self.program.lists.len() - slots.len()) as u32
    }

    /// Slots of `{a, b, ..}`, or of one register.
    fn words(&mut self, o: &Operand) -> Result<Vec<u32>> {
        match o {
            Operand::List(l) => l.iter().map(|r| self.value(r, Class::Word)).collect(),
            one => Ok(vec![self.value(one, Class::Word)?]),
        }
    }
}

fn integer(o: Option<&Operand>) -> Result<i64> {
    match o {
        Some(Operand::Int(v)) => i64::try_from(*v).map_err(|e| e.to_string()),
        other => Err(format!("{other:?} where a number is wanted")),
    }
}

fn unknown<T>() -> Result<T> {
    Err("not modelled".into())
}
