import{a}from"./chunk-XSBIQCCI.js";import"./chunk-WNT4WNQI.js";import"./chunk-BPFACI2I.js";import"./chunk-OZVCEKNA.js";import"./chunk-SQE76S5B.js";export{a as FirstSteps};
