//! What is asked of the operating system: links, the firewall, the system's resolver. The only place that starts programs.

pub mod linux;
