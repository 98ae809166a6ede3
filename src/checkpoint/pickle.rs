//! A restricted unpickler: builds plain data and tensor descriptions, and can run nothing.
//!
//! It knows the opcodes that `torch.save` emits (protocol 2, with those of protocol 4 that name the same things) and a
//! handful of classes; anything else is an error that names it. Objects live in an arena and refer to each other by index, so
//! that cycles and shared objects cost nothing; memory is proportional to the length of the pickle.

use std::collections::HashMap;

use super::error::Fault;
use super::tensors::Dtype;

/// Longest pickle that is read. That of the official `flow.pt` is 0.2 MB.
const MAX_LEN: usize = 64 << 20;

/// Index of an object in its [`Pickle`].
pub type Id = usize;

/// A tensor that lies in a storage of the archive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorRef<'a> {
    pub storage: &'a str,
    pub dtype: Dtype,
    /// First value in the storage.
    pub offset: usize,
    pub shape: Vec<usize>,
    pub strides: Vec<usize>,
}

/// Callables and classes that a pickle may name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    RebuildTensor,
    RebuildParameter,
    OrderedDict,
    Storage(Dtype),
}

/// One unpickled object.
#[derive(Clone, Debug, PartialEq)]
pub enum Object<'a> {
    None,
    Bool(bool),
    Int(i64),
    Float(f64),
    Str(&'a str),
    Bytes(&'a [u8]),
    Tuple(Vec<Id>),
    List(Vec<Id>),
    Dict(Vec<(Id, Id)>),
    Class(Class),
    /// `('storage', class, key, device, size)`
    Storage {
        dtype: Dtype,
        key: &'a str,
    },
    Tensor(TensorRef<'a>),
}

/// An unpickled object graph.
#[derive(Debug)]
pub struct Pickle<'a> {
    objects: Vec<Object<'a>>,
    root: Id,
}

impl<'a> Pickle<'a> {
    /// Unpickles `bytes`.
    ///
    /// # Errors
    /// On a malformed or cut-off pickle, an opcode or a class that is not allowed.
    pub fn read(bytes: &'a [u8]) -> Result<Self, Fault> {
        if bytes.len() > MAX_LEN {
            let message = format!("pickle of {} bytes is too long", bytes.len());
            return Err(Fault::format(message));
        }
        let mut machine = Machine {
            bytes,
            at: 0,
            objects: Vec::new(),
            stack: Vec::new(),
            marks: Vec::new(),
            memo: HashMap::new(),
        };
        let root = loop {
            let at = machine.at;
            let located = |what| Fault::format(format!("pickle, byte {at}: {what}"));
            if let Some(root) = machine.step().map_err(located)? {
                break root;
            }
        };
        Ok(Self {
            objects: machine.objects,
            root,
        })
    }

    /// The outermost object.
    pub fn root(&self) -> Id {
        self.root
    }

    /// An object of this pickle.
    pub fn get(&self, id: Id) -> &Object<'a> {
        &self.objects[id]
    }
}

struct Machine<'a> {
    bytes: &'a [u8],
    at: usize,
    objects: Vec<Object<'a>>,
    stack: Vec<Id>,
    /// Stack heights at the open marks.
    marks: Vec<usize>,
    memo: HashMap<u32, Id>,
}

type Step<T> = Result<T, String>;

impl<'a> Machine<'a> {
    /// Runs one opcode; the root object when it was `STOP`.
    fn step(&mut self) -> Step<Option<Id>> {
        match self.u8()? {
            // PROTO, FRAME
            0x80 => drop(self.take(1)?),
            0x95 => drop(self.take(8)?),
            b'.' => return self.pop().map(Some),
            b'(' => self.marks.push(self.stack.len()),
            b'0' => drop(self.pop()?),
            b'1' => drop(self.pop_mark()?),
            b'2' => {
                let top = self.top()?;
                self.stack.push(top);
            }
            b'N' => self.push(Object::None),
            0x88 => self.push(Object::Bool(true)),
            0x89 => self.push(Object::Bool(false)),
            b'K' | b'M' | b'J' | 0x8a | b'G' | b'X' | 0x8c | b'T' | b'U' | b'B' | b'C' => {
                self.at -= 1;
                let literal = self.literal()?;
                self.push(literal);
            }
            b')' => self.push(Object::Tuple(Vec::new())),
            b']' => self.push(Object::List(Vec::new())),
            b'}' => self.push(Object::Dict(Vec::new())),
            b't' => {
                let items = self.pop_mark()?;
                self.push(Object::Tuple(items));
            }
            op @ 0x85..=0x87 => {
                let items = self.pop_n(usize::from(op - 0x84))?;
                self.push(Object::Tuple(items));
            }
            b'a' => {
                let item = self.pop_n(1)?;
                self.append(item)?;
            }
            b'e' => {
                let items = self.pop_mark()?;
                self.append(items)?;
            }
            b's' => {
                let items = self.pop_n(2)?;
                self.set_items(&items)?;
            }
            b'u' => {
                let items = self.pop_mark()?;
                self.set_items(&items)?;
            }
            b'q' | b'r' | 0x94 | b'h' | b'j' => {
                self.at -= 1;
                self.memoize()?;
            }
            b'c' => {
                let (module, name) = (self.line()?, self.line()?);
                self.push_class(module, name)?;
            }
            0x93 => {
                let names = self.pop_n(2)?;
                let (module, name) = (self.str(names[0])?, self.str(names[1])?);
                self.push_class(module, name)?;
            }
            // REDUCE, NEWOBJ
            b'R' | 0x81 => self.reduce()?,
            // BUILD: only sets attributes such as `_metadata`, which are not data.
            b'b' => drop(self.pop()?),
            b'Q' => self.persistent_id()?,
            op => return Err(format!("opcode {op:#04x} is not allowed")),
        }
        Ok(None)
    }

    /// Numbers and strings.
    fn literal(&mut self) -> Step<Object<'a>> {
        Ok(match self.u8()? {
            b'K' => Object::Int(self.u8()?.into()),
            b'M' => Object::Int(u16::from_le_bytes(self.array()?).into()),
            b'J' => Object::Int(i32::from_le_bytes(self.array()?).into()),
            0x8a => {
                let len = usize::from(self.u8()?);
                let digits = self.take(len)?;
                if len > 8 {
                    return Err("integer of more than 64 bits".into());
                }
                let negative = digits.last().is_some_and(|b| b & 0x80 != 0);
                let mut wide = [if negative { 0xff } else { 0 }; 8];
                wide[..len].copy_from_slice(digits);
                Object::Int(i64::from_le_bytes(wide))
            }
            b'G' => Object::Float(f64::from_be_bytes(self.array()?)),
            op @ (b'X' | b'T' | b'B') => {
                let len = u32::from_le_bytes(self.array()?) as usize;
                self.text(op, len)?
            }
            op => {
                let len = usize::from(self.u8()?);
                self.text(op, len)?
            }
        })
    }

    fn text(&mut self, op: u8, len: usize) -> Step<Object<'a>> {
        let bytes = self.take(len)?;
        if matches!(op, b'B' | b'C') {
            return Ok(Object::Bytes(bytes));
        }
        let text = std::str::from_utf8(bytes).map_err(|_| "text is not UTF-8")?;
        Ok(Object::Str(text))
    }

    /// The memo's opcodes: put the top of the stack, or get.
    fn memoize(&mut self) -> Step<()> {
        let op = self.u8()?;
        let key = match op {
            0x94 => self.memo.len() as u32,
            b'q' | b'h' => self.u8()?.into(),
            _ => u32::from_le_bytes(self.array()?),
        };
        if matches!(op, b'h' | b'j') {
            let id = *self.memo.get(&key).ok_or("memo entry does not exist")?;
            self.stack.push(id);
        } else {
            let top = self.top()?;
            self.memo.insert(key, top);
        }
        Ok(())
    }

    fn push_class(&mut self, module: &str, name: &str) -> Step<()> {
        let storage = |dtype| Some(Class::Storage(dtype));
        let class = match (module, name) {
            ("torch._utils", "_rebuild_tensor_v2") => Some(Class::RebuildTensor),
            ("torch._utils", "_rebuild_parameter") => Some(Class::RebuildParameter),
            ("collections", "OrderedDict") => Some(Class::OrderedDict),
            ("torch", "DoubleStorage") => storage(Dtype::F64),
            ("torch", "FloatStorage") => storage(Dtype::F32),
            ("torch", "HalfStorage") => storage(Dtype::F16),
            ("torch", "BFloat16Storage") => storage(Dtype::Bf16),
            ("torch", "LongStorage") => storage(Dtype::I64),
            ("torch", "IntStorage") => storage(Dtype::I32),
            ("torch", "ShortStorage") => storage(Dtype::I16),
            ("torch", "CharStorage") => storage(Dtype::I8),
            ("torch", "ByteStorage") => storage(Dtype::U8),
            ("torch", "BoolStorage") => storage(Dtype::Bool),
            _ => None,
        };
        let class = class.ok_or_else(|| format!("class {module}.{name} is not allowed"))?;
        self.push(Object::Class(class));
        Ok(())
    }

    fn reduce(&mut self) -> Step<()> {
        let call = self.pop_n(2)?;
        let Object::Tuple(args) = &self.objects[call[1]] else {
            return Err("arguments are not a tuple".into());
        };
        let object = match &self.objects[call[0]] {
            Object::Class(Class::OrderedDict) if args.is_empty() => Object::Dict(Vec::new()),
            Object::Class(Class::RebuildTensor) => Object::Tensor(self.tensor(args)?),
            Object::Class(Class::RebuildParameter) => {
                let data = *args.first().ok_or("parameter without data")?;
                match &self.objects[data] {
                    Object::Tensor(tensor) => Object::Tensor(tensor.clone()),
                    _ => return Err("parameter is not a tensor".into()),
                }
            }
            other => return Err(format!("{other:?} cannot be called")),
        };
        self.push(object);
        Ok(())
    }

    /// `(storage, offset, shape, strides, requires_grad, hooks)`
    fn tensor(&self, args: &[Id]) -> Step<TensorRef<'a>> {
        let [storage, offset, shape, strides, ..] = *args else {
            return Err("tensor with too few arguments".into());
        };
        let Object::Storage { dtype, key } = self.objects[storage] else {
            return Err("tensor without a storage".into());
        };
        let (shape, strides) = (self.sizes(shape)?, self.sizes(strides)?);
        if shape.len() != strides.len() || shape.len() > 8 {
            return Err("tensor of more than 8 dimensions, or strides that do not fit".into());
        }
        Ok(TensorRef {
            storage: key,
            dtype,
            offset: self.size(offset)?,
            shape,
            strides,
        })
    }

    /// `('storage', class, key, device, size)` → a storage of the archive.
    fn persistent_id(&mut self) -> Step<()> {
        let id = self.pop()?;
        let Object::Tuple(items) = &self.objects[id] else {
            return Err("persistent id is not a tuple".into());
        };
        let [kind, class, key, ..] = items[..] else {
            return Err("persistent id is too short".into());
        };
        let Object::Class(Class::Storage(dtype)) = self.objects[class] else {
            return Err("persistent id without a storage class".into());
        };
        if self.str(kind)? != "storage" {
            return Err("persistent id is not a storage".into());
        }
        let key = self.str(key)?;
        self.push(Object::Storage { dtype, key });
        Ok(())
    }

    fn append(&mut self, items: Vec<Id>) -> Step<()> {
        let top = self.top()?;
        match &mut self.objects[top] {
            Object::List(list) => list.extend(items),
            _ => return Err("append to what is not a list".into()),
        }
        Ok(())
    }

    fn set_items(&mut self, items: &[Id]) -> Step<()> {
        let top = self.top()?;
        match &mut self.objects[top] {
            Object::Dict(dict) if items.len().is_multiple_of(2) => {
                dict.extend(items.chunks_exact(2).map(|kv| (kv[0], kv[1])));
            }
            _ => return Err("set items of what is not a dict".into()),
        }
        Ok(())
    }

    fn sizes(&self, id: Id) -> Step<Vec<usize>> {
        match &self.objects[id] {
            Object::Tuple(items) | Object::List(items) => {
                items.iter().map(|&id| self.size(id)).collect()
            }
            _ => Err("shape is not a tuple".into()),
        }
    }

    fn size(&self, id: Id) -> Step<usize> {
        match self.objects[id] {
            Object::Int(n) => usize::try_from(n).map_err(|_| "negative size".into()),
            _ => Err("size is not an integer".into()),
        }
    }

    fn str(&self, id: Id) -> Step<&'a str> {
        match self.objects[id] {
            Object::Str(text) => Ok(text),
            _ => Err("name is not text".into()),
        }
    }

    fn push(&mut self, object: Object<'a>) {
        self.stack.push(self.objects.len());
        self.objects.push(object);
    }

    /// Height below which the stack belongs to an outer mark.
    fn floor(&self) -> usize {
        self.marks.last().copied().unwrap_or(0)
    }

    fn top(&self) -> Step<Id> {
        match self.stack.last() {
            Some(&id) if self.stack.len() > self.floor() => Ok(id),
            _ => Err("stack is empty".into()),
        }
    }

    fn pop(&mut self) -> Step<Id> {
        let top = self.top()?;
        self.stack.pop();
        Ok(top)
    }

    fn pop_n(&mut self, n: usize) -> Step<Vec<Id>> {
        let start = self.stack.len().checked_sub(n);
        match start {
            Some(start) if start >= self.floor() => Ok(self.stack.split_off(start)),
            _ => Err("stack is empty".into()),
        }
    }

    fn pop_mark(&mut self) -> Step<Vec<Id>> {
        let mark = self.marks.pop().ok_or("no mark on the stack")?;
        Ok(self.stack.split_off(mark))
    }

    fn take(&mut self, len: usize) -> Step<&'a [u8]> {
        let end = self.at.checked_add(len);
        let taken = end.and_then(|end| self.bytes.get(self.at..end));
        let taken = taken.ok_or("unexpected end")?;
        self.at += len;
        Ok(taken)
    }

    fn u8(&mut self) -> Step<u8> {
        Ok(self.take(1)?[0])
    }

    fn array<const N: usize>(&mut self) -> Step<[u8; N]> {
        let taken = self.take(N)?;
        Ok(taken
            .try_into()
            .expect("take returns what was asked for. This is a bug."))
    }

    /// Text up to a line feed.
    fn line(&mut self) -> Step<&'a str> {
        let rest = &self.bytes[self.at..];
        let len = rest.iter().position(|&b| b == b'\n');
        let line = &rest[..len.ok_or("unexpected end")?];
        self.at += line.len() + 1;
        std::str::from_utf8(line).map_err(|_| "name is not UTF-8".into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(bytes: &[u8]) -> Result<String, String> {
        let pickle = Pickle::read(bytes).map_err(|e| e.to_string())?;
        Ok(format!("{:?}", pickle.get(pickle.root())))
    }

    #[test]
    fn literals() {
        for (bytes, expected) in [
            (&b"\x80\x02K\x07."[..], "Int(7)"),
            (b"J\xfe\xff\xff\xff.", "Int(-2)"),
            (b"\x8a\x02\xff\x00.", "Int(255)"),
            (b"\x8a\x01\xff.", "Int(-1)"),
            (b"\x8a\x00.", "Int(0)"),
            (b"G\x3f\xf8\0\0\0\0\0\0.", "Float(1.5)"),
            (b"X\x02\0\0\0\xc3\xa9.", "Str(\"é\")"),
            (b"}(K\x01K\x02u.", "Dict([(1, 2)])"),
            (b"](NN\x88e.", "List([1, 2, 3])"),
            (b"ccollections\nOrderedDict\n)R.", "Dict([])"),
        ] {
            assert_eq!(read(bytes).as_deref(), Ok(expected));
        }
    }

    #[test]
    fn code_is_refused_by_name() {
        for (bytes, name) in [
            (&b"cos\nsystem\n(X\x02\0\0\0lstR."[..], "os.system"),
            (b"\x8c\x08builtins\x8c\x04eval\x93.", "builtins.eval"),
            (b"i__main__\nX\n.", "0x69"),
        ] {
            let error = read(bytes).unwrap_err();
            assert!(error.contains(name), "{error}");
        }
    }

    #[test]
    fn malformed_pickles_are_errors() {
        for bytes in [
            &b""[..],
            b".",
            b"t.",
            b"(.",
            b"h\x05.",
            b"K\x01(0.",
            b"K\x01Q.",
            b"K\x01K\x02s.",
            b"}K\x01a.",
            b"X\xff\xff\xff\xffab.",
            b"\x8a\xff\x00.",
            b"ctorch._utils\n_rebuild_tensor_v2\n)R.",
            b"ctorch\nFloatStorage\n)R.",
        ] {
            assert!(read(bytes).is_err(), "{bytes:?}");
        }
    }

    #[test]
    fn a_cycle_is_only_an_index() {
        assert_eq!(read(b"]q\x00h\x00a.").as_deref(), Ok("List([0])"));
    }
}
