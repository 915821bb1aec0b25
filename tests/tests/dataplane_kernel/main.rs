//! The real data plane against the kernel: maps, adoption, carrying over and attachment. Each test has a namespace with a veth pair
//! (`eth0` and `peer`) and a pin directory of its own.

mod adoption;
mod attachment;
mod carry;
mod exits;
mod fixture;
mod flows;
mod maps;
