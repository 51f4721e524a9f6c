"""Dispatches recorded into command buffers, with their descriptor sets."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import Any

from tandem.devices.vulkan.binding import constants as vk
from tandem.devices.vulkan.binding.loader import NULL, create, ffi, struct
from tandem.devices.vulkan.context import Context
from tandem.devices.vulkan.dispatch import Dispatch, Grid, Use, barriers
from tandem.devices.vulkan.memory import View
from tandem.devices.vulkan.pipelines import Pipelines

# How a table of workgroup counts lies in memory: VkDispatchIndirectCommand.
GROUPS_BYTES = 12

_Bindings = tuple[tuple[int, View], ...]


class Recording:
    """One command buffer that runs `dispatches`, recorded once.

    table: where the workgroup counts of `grids` stand when it runs. queries: a pool of timestamps, one for the begin
    and one after each dispatch; the dispatches then run one after another.
    """

    def __init__(
        self,
        context: Context,
        pipelines: Pipelines,
        dispatches: Sequence[Dispatch],
        grids: Sequence[Grid],
        table: View,
        queries: Any = None,
    ) -> None:
        self._context = context
        wanted = {_bindings(dispatch.uses) for dispatch in dispatches}
        pool = context.descriptor_pool(max(1, len(wanted)))
        sets = self._descriptor_sets(pool, wanted)
        ready = [pipelines.get(dispatch.shader, dispatch.constants) for dispatch in dispatches]
        waits = barriers(dispatches)
        self.barriers = sum(waits)
        self.commands = context.command_buffer()
        vulkan = context.vulkan
        between = struct(
            "VkMemoryBarrier",
            srcAccessMask=vk.ACCESS_SHADER_WRITE,
            dstAccessMask=vk.ACCESS_SHADER_READ | vk.ACCESS_SHADER_WRITE,
        )
        after = struct("VkMemoryBarrier", srcAccessMask=vk.ACCESS_SHADER_WRITE, dstAccessMask=vk.ACCESS_HOST_READ)
        # What came before on the queue: other programs' shaders, copies and fills.
        first = struct(
            "VkMemoryBarrier",
            srcAccessMask=vk.ACCESS_SHADER_WRITE | vk.ACCESS_TRANSFER_WRITE,
            dstAccessMask=vk.ACCESS_SHADER_READ | vk.ACCESS_SHADER_WRITE,
        )
        compute = vk.STAGE_COMPUTE

        def write(commands: Any) -> None:
            vulkan.vkCmdPipelineBarrier(commands, compute | vk.STAGE_TRANSFER, compute, 0, 1, first, 0, NULL, 0, NULL)
            if queries is not None:
                vulkan.vkCmdResetQueryPool(commands, queries, 0, len(dispatches) + 1)
                vulkan.vkCmdWriteTimestamp(commands, vk.STAGE_BOTTOM, queries, 0)
            for index, (dispatch, pipeline, wait) in enumerate(zip(dispatches, ready, waits, strict=True)):
                if wait or queries is not None:
                    vulkan.vkCmdPipelineBarrier(commands, compute, compute, 0, 1, between, 0, NULL, 0, NULL)
                vulkan.vkCmdBindPipeline(commands, vk.BIND_POINT_COMPUTE, pipeline)
                chosen = ffi.new("VkDescriptorSet[1]", [sets[_bindings(dispatch.uses)]])
                layout = context.pipeline_layout
                vulkan.vkCmdBindDescriptorSets(commands, vk.BIND_POINT_COMPUTE, layout, 0, 1, chosen, 0, NULL)
                values = ffi.from_buffer(dispatch.push)
                vulkan.vkCmdPushConstants(
                    commands, layout, vk.SHADER_STAGE_COMPUTE, 0, len(dispatch.push), ffi.cast("void*", values)
                )
                at = table.offset + grids.index(dispatch.grid) * GROUPS_BYTES
                vulkan.vkCmdDispatchIndirect(commands, table.buffer.handle, at)
                if queries is not None:
                    vulkan.vkCmdWriteTimestamp(commands, vk.STAGE_BOTTOM, queries, index + 1)
            vulkan.vkCmdPipelineBarrier(commands, compute, vk.STAGE_HOST, 0, 1, after, 0, NULL, 0, NULL)

        context.record(self.commands, write)
        weakref.finalize(self, context.release, self.commands, pool).atexit = False

    def _descriptor_sets(self, pool: Any, wanted: set[_Bindings]) -> dict[_Bindings, Any]:
        """One descriptor set for each distinct list of bindings."""
        handle, vulkan = self._context.handle, self._context.vulkan
        count = sum(len(each) for each in wanted)
        layout = ffi.new("VkDescriptorSetLayout[1]", [self._context.set_layout])
        info = struct("VkDescriptorSetAllocateInfo", descriptorPool=pool, descriptorSetCount=1, pSetLayouts=layout)
        sets = {each: create("vkAllocateDescriptorSets", "VkDescriptorSet", handle, info) for each in wanted}
        buffers = ffi.new("VkDescriptorBufferInfo[]", count)
        writes = ffi.new("VkWriteDescriptorSet[]", count)
        at = 0
        for bindings, target in sets.items():
            for binding, view in bindings:
                buffers[at] = (view.buffer.handle, view.offset, view.size)
                writes[at].sType = vk.SType.VkWriteDescriptorSet
                writes[at].dstSet = target
                writes[at].dstBinding = binding
                writes[at].descriptorCount = 1
                writes[at].descriptorType = vk.DESCRIPTOR_STORAGE_BUFFER
                writes[at].pBufferInfo = buffers + at
                at += 1
        vulkan.vkUpdateDescriptorSets(handle, count, writes, 0, NULL)
        return sets


def _bindings(uses: Sequence[Use]) -> _Bindings:
    return tuple((use.binding, use.view) for use in uses)
