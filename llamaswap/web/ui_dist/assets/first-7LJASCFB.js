import{a}from"./chunk-WXZI4RYR.js";import"./chunk-DRPGHEPN.js";import"./chunk-5XUHD237.js";import"./chunk-DZSD3YLW.js";import"./chunk-X3VPJ676.js";import"./chunk-SQE76S5B.js";export{a as FirstSteps};
