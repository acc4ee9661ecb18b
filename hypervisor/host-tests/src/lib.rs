//! Nothing: the tests beside it include single modules of the hypervisor, whose binary is for bare metal only.
