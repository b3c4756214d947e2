import {
  type LinuxBlockIo as ProtoBlockIo,
  type LinuxCpu as ProtoCpu,
  type LinuxDeviceCgroup as ProtoDevice,
  type LinuxMemory as ProtoMemory,
  type LinuxNetwork as ProtoNetwork,
  LinuxResources as ProtoResources,
  type LinuxThrottleDevice as ProtoThrottleDevice,
  type LinuxWeightDevice as ProtoWeightDevice,
} from "../../proto/generated/jobs/v1/resources.ts";
import {
  type LinuxBlockIO,
  type LinuxCpu,
  type LinuxDeviceCgroup,
  type LinuxMemory,
  type LinuxResources,
  type LinuxThrottleDevice,
  type LinuxWeightDevice,
} from "../worker/index.ts";
import { defined } from "./translate-values.ts";

function filled<T>(list: readonly T[]): readonly T[] | undefined {
  return list.length > 0 ? list : undefined;
}

/** Translates limits to the names of the OCI runtime specification. */
export function toResources(from: ProtoResources): LinuxResources {
  const { devices, memory, cpu, pids, blockIo, hugepageLimits, network, rdma, unified } = from;
  return defined({
    devices: filled(devices.map(toDevice)),
    memory: memory && toMemory(memory),
    cpu: cpu && defined(cpu),
    pids: pids && defined(pids),
    blockIO: blockIo && toBlockIO(blockIo),
    hugepageLimits: filled(hugepageLimits),
    network: network && toNetwork(network),
    rdma: rdma.size > 0 ? Object.fromEntries(rdma.entries().map(([name, limit]) => [name, defined(limit)])) : undefined,
    unified: unified.size > 0 ? Object.fromEntries(unified) : undefined,
  });
}

function toDevice({ allow, ...rest }: ProtoDevice): LinuxDeviceCgroup {
  return { allow, ...defined(rest) };
}

function toMemory({ kernelTcp, disableOomKiller, ...same }: ProtoMemory): LinuxMemory {
  return defined({ ...same, kernelTCP: kernelTcp, disableOOMKiller: disableOomKiller });
}

function toNetwork({ classId, priorities }: ProtoNetwork): NonNullable<LinuxResources["network"]> {
  return defined({ classID: classId, priorities: filled(priorities) });
}

function toBlockIO(from: ProtoBlockIo): LinuxBlockIO {
  return defined({
    weight: from.weight,
    leafWeight: from.leafWeight,
    weightDevice: filled(from.weightDevice.map(toWeightDevice)),
    throttleReadBpsDevice: filled(from.throttleReadBpsDevice.map(toThrottleDevice)),
    throttleWriteBpsDevice: filled(from.throttleWriteBpsDevice.map(toThrottleDevice)),
    throttleReadIOPSDevice: filled(from.throttleReadIopsDevice.map(toThrottleDevice)),
    throttleWriteIOPSDevice: filled(from.throttleWriteIopsDevice.map(toThrottleDevice)),
  });
}

function toWeightDevice({ major, minor, ...rest }: ProtoWeightDevice): LinuxWeightDevice {
  return { major, minor, ...defined(rest) };
}

function toThrottleDevice({ major, minor, rate, path }: ProtoThrottleDevice): LinuxThrottleDevice {
  return { major, minor, rate, ...defined({ path }) };
}

/** Translates limits back to the API's names. */
export function fromResources(from: LinuxResources): ProtoResources {
  const { memory, cpu, pids, blockIO, network } = from;
  return ProtoResources.fromPartial({
    devices: [...(from.devices ?? [])],
    memory: memory && fromMemory(memory),
    cpu: cpu && fromCpu(cpu),
    pids: pids && { limit: pids.limit },
    blockIo: blockIO && fromBlockIO(blockIO),
    hugepageLimits: [...(from.hugepageLimits ?? [])],
    network: network && { classId: network.classID, priorities: [...(network.priorities ?? [])] },
    rdma: new Map(Object.entries(from.rdma ?? {})),
    unified: new Map(Object.entries(from.unified ?? {})),
  });
}

function fromMemory({ kernelTCP, disableOOMKiller, ...same }: LinuxMemory): ProtoMemory {
  return { ...same, kernelTcp: kernelTCP, disableOomKiller: disableOOMKiller };
}

function fromCpu(cpu: LinuxCpu): ProtoCpu {
  return { ...cpu };
}

function fromBlockIO(from: LinuxBlockIO): ProtoBlockIo {
  return {
    weight: from.weight,
    leafWeight: from.leafWeight,
    weightDevice: [...(from.weightDevice ?? [])],
    throttleReadBpsDevice: [...(from.throttleReadBpsDevice ?? [])],
    throttleWriteBpsDevice: [...(from.throttleWriteBpsDevice ?? [])],
    throttleReadIopsDevice: [...(from.throttleReadIOPSDevice ?? [])],
    throttleWriteIopsDevice: [...(from.throttleWriteIOPSDevice ?? [])],
  };
}
